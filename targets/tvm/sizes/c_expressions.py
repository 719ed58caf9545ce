"""Expressions of sizes as C spells them, for people to read and for programs that launch a kernel."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import tirx

_SUM, _PRODUCT, _ATOM = 1, 2, 3
"""How strongly operators bind."""
_OPERATORS = {
    tirx.Add: ("+", _SUM),
    tirx.Sub: ("-", _SUM),
    tirx.Mul: ("*", _PRODUCT),
    # Sizes are not negative: rounding down and rounding to zero are the same.
    tirx.FloorDiv: ("/", _PRODUCT),
    tirx.Div: ("/", _PRODUCT),
    tirx.FloorMod: ("%", _PRODUCT),
    tirx.Mod: ("%", _PRODUCT),
}
_FUNCTIONS = {tirx.Max: "max", tirx.Min: "min"}


def in_c(expression: Any) -> str:
    """An expression of sizes: ``max((tokens + 3) / 4, 1)``. Conversions between integer types are left out; operators
    that sizes are not made with are spelled as TVM does."""
    return _print(expression)[0]


def _print(expression: Any) -> tuple[str, int]:
    """The text, and how strongly its outermost operator binds."""
    if isinstance(expression, tirx.IntImm):
        return str(expression.value), _ATOM
    if isinstance(expression, tvm.ir.Var):
        return expression.name, _ATOM
    if isinstance(expression, tirx.Cast):
        return _print(expression.value)
    kind = type(expression)
    if kind in _FUNCTIONS:
        return f"{_FUNCTIONS[kind]}({in_c(expression.a)}, {in_c(expression.b)})", _ATOM
    if kind not in _OPERATORS:
        return str(expression), _ATOM
    operator, strength = _OPERATORS[kind]
    (left, left_strength), (right, right_strength) = _print(expression.a), _print(expression.b)
    left = left if left_strength >= strength else f"({left})"
    right = right if right_strength > strength else f"({right})"
    return f"{left} {operator} {right}", strength
