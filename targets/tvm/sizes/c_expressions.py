"""Expressions of sizes as C spells them, for people to read and for programs that launch a kernel."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tvm
import tvm_ffi
from tvm import relax, tirx

from moec.common.errors import UnsupportedError

_CHOICE, _LOGIC, _COMPARISON, _SUM, _PRODUCT, _ATOM = range(6)
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
_CONDITIONS = {
    tirx.EQ: ("==", _COMPARISON),
    tirx.NE: ("!=", _COMPARISON),
    tirx.LT: ("<", _COMPARISON),
    tirx.LE: ("<=", _COMPARISON),
    tirx.GT: (">", _COMPARISON),
    tirx.GE: (">=", _COMPARISON),
}
_ROUNDING_DOWN = {tirx.FloorDiv: "floor_div", tirx.FloorMod: "floor_mod"}


def sizes_of(
    kernel: tirx.PrimFunc, types: Sequence[Any], instead: Mapping[tirx.Var, Any] | None = None
) -> dict[str, str]:
    """C expressions for a kernel's dynamic sizes in a call, by name, in terms of the program's sizes.

    ``types``: the types of all arguments; those that are not tensors tell no sizes. ``instead``: replacements of some
    of the program's sizes."""
    sizes: dict[str, str] = {}
    for parameter, argument in zip(kernel.params, types, strict=True):
        if isinstance(parameter.ty, tirx.BufferType) and isinstance(argument, relax.TensorType):
            for size, actual in zip(parameter.shape, argument.shape, strict=True):
                if isinstance(size, tirx.Var):
                    sizes.setdefault(size.name, in_c(_replaced(actual, instead or {})))
    return sizes


def _replaced(size: Any, instead: Mapping[tirx.Var, Any]) -> Any:
    if not instead or not isinstance(size, tirx.Expr):
        return size
    return tvm_ffi.structural_map(size, [(tvm.ir.Var, lambda variable: instead.get(variable, variable))])


def in_c(expression: Any) -> str:
    """An expression of sizes: ``max((tokens + 3) / 4, 1)``. Conversions between integer types are left out; operators
    that sizes are not made with are spelled as TVM does."""
    return _SizeInC(lambda variable: variable.name, is_exact=False).text(expression)


def in_exact_c(expression: Any, name_of: Callable[[tirx.Var], str]) -> str:
    """An expression of numbers, also negative ones, for a C compiler: division is ``floor_div``, which rounds down.

    ``name_of``: the identifier of a variable. Raises UnsupportedError for an operator without a spelling."""
    return _SizeInC(name_of, is_exact=True).text(expression)


def in_floating_c(expression: Any, name_of: Callable[[tirx.Var], str]) -> str:
    """The same, with sums and products in floating point, where they cannot overflow: ``4.0 * batch * seq``."""
    return _floating(expression, name_of, first=True)


@dataclasses.dataclass(frozen=True)
class _SizeInC:
    name_of: Callable[[tirx.Var], str]
    is_exact: bool

    def text(self, expression: Any) -> str:
        return self._print(expression)[0]

    def _print(self, expression: Any) -> tuple[str, int]:
        """The text, and how strongly its outermost operator binds."""
        if isinstance(expression, tirx.IntImm):
            negative = self.is_exact and expression.value < 0
            return (f"({expression.value})" if negative else str(expression.value)), _ATOM
        if isinstance(expression, tvm.ir.Var):
            return self.name_of(expression), _ATOM
        if isinstance(expression, tirx.Cast):
            return self._print(expression.value)
        kind = type(expression)
        functions = {**_FUNCTIONS, **_ROUNDING_DOWN} if self.is_exact else _FUNCTIONS
        if kind in functions:
            return f"{functions[kind]}({self.text(expression.a)}, {self.text(expression.b)})", _ATOM
        if self.is_exact and kind is tirx.Select:
            parts = (expression.condition, expression.true_value, expression.false_value)
            condition, chosen, other = (self.within(part, _LOGIC) for part in parts)
            return f"{condition} ? {chosen} : {other}", _CHOICE
        operators = {**_OPERATORS, **_CONDITIONS} if self.is_exact else _OPERATORS
        if kind not in operators:
            if self.is_exact:
                raise UnsupportedError(f"size {expression} has no spelling in C; compile without --form c")
            return str(expression), _ATOM
        operator, strength = operators[kind]
        left, right = self.within(expression.a, strength), self.within(expression.b, strength + 1)
        return f"{left} {operator} {right}", strength

    def within(self, expression: Any, least: int) -> str:
        """The text, in brackets where its outermost operator binds more loosely than ``least``."""
        text, strength = self._print(expression)
        return text if strength >= least else f"({text})"


def _floating(expression: Any, name_of: Callable[[tirx.Var], str], *, first: bool) -> str:
    """``first``: whether nothing on its left makes it a product in floating point."""
    if isinstance(expression, tirx.Cast):
        return _floating(expression.value, name_of, first=first)
    if isinstance(expression, tirx.IntImm):
        return f"{expression.value}.0"
    if isinstance(expression, tirx.Mul):
        factors = _factors(expression)
        number = math.prod(factor.value for factor in factors if isinstance(factor, tirx.IntImm))
        others = [factor for factor in factors if not isinstance(factor, tirx.IntImm)]
        return " * ".join([f"{number}.0", *(_floating(factor, name_of, first=False) for factor in others)])
    if isinstance(expression, tirx.Add | tirx.Sub):
        sign = "+" if isinstance(expression, tirx.Add) else "-"
        return f"({_floating(expression.a, name_of, first=True)} {sign} {_floating(expression.b, name_of, first=True)})"
    text = _SizeInC(name_of, is_exact=True).within(expression, _ATOM)
    return f"(double){text}" if first else text


def _factors(expression: Any) -> list[Any]:
    """The factors of a product, in their order."""
    if isinstance(expression, tirx.Mul):
        return [*_factors(expression.a), *_factors(expression.b)]
    return _factors(expression.value) if isinstance(expression, tirx.Cast) else [expression]
