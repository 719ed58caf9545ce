"""The symbols in shapes, and sizes for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir


def symbols_of(value: ir.Value) -> list[str]:
    """The distinct symbols in the shape of ``value``, in order."""
    symbols: dict[str, None] = {}
    for dim in value.shape or ():
        if isinstance(dim, ir.SymbolicDim):
            symbols.update(dict.fromkeys(sorted(dim.free_symbols())))
    return list(symbols)


def shape_at(value: ir.Value, sizes: Mapping[str, int]) -> list[int]:
    """The shape of ``value`` for the given sizes; symbols without a size count as 1."""
    assert value.shape is not None
    shape: list[int] = []
    for dim in value.shape:
        if isinstance(dim, ir.SymbolicDim):
            size = None if dim.value is None else sizes.get(dim.value)
            dim = (
                size
                if size is not None
                else dim.evaluate({symbol: sizes.get(symbol, 1) for symbol in dim.free_symbols()})
            )
        shape.append(dim if isinstance(dim, int) else 0)
    return shape


def sizes_for(units: int, symbols: Sequence[str], others: Sequence[str]) -> dict[str, int]:
    """Sizes for the symbols of x's shape whose product is ``units``: two sequences if possible, or sequences of two.

    With two, it shows whether a token's result depends on the other tokens of its sequence. ``others``, symbols that x
    lacks (the length of another input), change with the number of tokens.
    """
    sizes = dict.fromkeys(others, 1 + units % 5) | dict.fromkeys(symbols, 1)
    if len(symbols) > 1 and units > 0 and units % 2 == 0:
        sizes[symbols[0]] = 2 if units % 4 else units // 2
        units //= sizes[symbols[0]]
    if symbols:
        sizes[symbols[-1]] = units
    return sizes
