"""Sizes of values as expressions of the graph's symbolic sizes."""

from __future__ import annotations

import onnx_ir as ir
import sympy


def size(name: str) -> sympy.Symbol:
    """The symbol of a named size: a whole number from 0 up."""
    return sympy.Symbol(name, integer=True, nonnegative=True)


def expression(dim: int | ir.SymbolicDim) -> sympy.Expr | None:
    """A dimension as an expression; None when it is unknown."""
    if isinstance(dim, int):
        return sympy.Integer(dim)
    if dim.value is None:
        return None
    parsed = ir.SymbolicDim(dim.value)._expr
    if parsed is None:
        return None
    return parsed.xreplace({symbol: size(symbol.name) for symbol in parsed.free_symbols})


def shape_of(value: ir.Value) -> list[sympy.Expr] | None:
    """All dimensions of a value as expressions; None when one or the rank is unknown."""
    if value.shape is None:
        return None
    dims = [expression(dim) for dim in value.shape]
    return None if any(dim is None for dim in dims) else dims  # type: ignore[return-value]
