"""Integers that may be too large for their type, and become others, in silence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.ir.facts import MOST_SIZES, Facts
from moec.ir.intervals import Interval, type_limits
from moec.ir.sides import Condition, Given, Wraps

Array = np.ndarray[Any, Any]


def _along(node: ir.Node, inputs: Given) -> Array:
    axis = inputs[1]
    assert axis is not None
    return _wide(inputs)[0].cumsum(axis=int(axis.ravel()[0]))


def _over(operation: Any) -> Callable[[ir.Node, Given], Array]:
    def exact(node: ir.Node, inputs: Given) -> Array:
        axes = inputs[1] if len(inputs) > 1 else None
        kept = bool(node.attributes.get_int("keepdims", 1))
        return np.asarray(operation(_wide(inputs)[0], axis=None if axes is None else tuple(axes), keepdims=kept))

    return exact


def _wide(inputs: Given) -> list[Array]:
    return [np.asarray(array, np.float64) for array in inputs if array is not None]


def _elementwise(operation: Callable[..., Any]) -> Callable[[ir.Node, Given], Array]:
    return lambda node, inputs: np.asarray(operation(*_wide(inputs)))


_EXACT: dict[str, Callable[[ir.Node, Given], Array]] = {
    "Abs": _elementwise(np.abs),
    "Add": _elementwise(np.add),
    "BitShift": _elementwise(lambda number, places: number * 2.0**places),
    "Cast": _elementwise(lambda number: number),
    "CumSum": _along,
    "Mul": _elementwise(np.multiply),
    "Neg": _elementwise(np.negative),
    "Pow": _elementwise(np.power),
    "ReduceProd": _over(np.prod),
    "ReduceSum": _over(np.sum),
    "Sub": _elementwise(np.subtract),
}
"""The function of each operator on numbers without limits."""
WRAPPING = frozenset(_EXACT)


def wraps(node: ir.Node, facts: Facts) -> tuple[Condition, ...]:
    """An integer result that may lie outside of its type, for sizes up to :data:`~moec.ir.facts.MOST_SIZES`. Nothing of
    operands of which nothing is known, except in types of 1 and 2 bytes, of which every number counts."""
    result, kind = node.outputs[0], node.op_type
    if result.dtype is None or not result.dtype.is_integer() or result.dtype.bitwidth < 8:
        return ()
    if kind == "BitShift" and node.attributes.get_string("direction", "") != "LEFT":
        return ()
    operands = [value for value in node.inputs[: 1 if kind in ("CumSum", "ReduceSum", "ReduceProd") else 2] if value]
    if any(
        value.dtype is None or not (value.dtype.is_integer() or value.dtype == ir.DataType.BOOL) for value in operands
    ):
        return ()
    size = 8 if result.dtype.itemsize > 4 else 4
    intervals = [facts.of_sizes.get(size, {}).get(value, Interval()).whole for value in operands]
    limits = type_limits(result)
    if result.dtype.itemsize > 2 and not all(map(_is_bounded, operands, intervals)):
        return ()
    low, high = _exact_bounds(kind, intervals, MOST_SIZES[size])
    if limits.low <= low and high <= limits.high:
        return ()
    return (Wraps(limits.low, limits.high, lambda inputs: _EXACT[kind](node, inputs)),)


def _is_bounded(value: ir.Value, interval: Interval) -> bool:
    limits = type_limits(value)
    return (interval.low > limits.low and interval.high < limits.high) or value.dtype == ir.DataType.BOOL


def _exact_bounds(kind: str, intervals: Sequence[Interval], most: int) -> tuple[float, float]:
    first, other = intervals[0], intervals[-1]
    if kind in ("CumSum", "ReduceSum"):
        return min(0.0, first.low * most), max(0.0, first.high * most)
    if kind == "ReduceProd":
        return (0.0, 1.0) if first.low >= -1 and first.high <= 1 else (-np.inf, np.inf)
    if kind in ("Abs", "Cast", "Neg"):
        return {"Abs": (0.0, max(-first.low, first.high)), "Cast": first, "Neg": (-first.high, -first.low)}[kind]
    operation = {"Add": np.add, "BitShift": _shifted, "Mul": np.multiply, "Pow": _power, "Sub": np.subtract}[kind]
    with np.errstate(all="ignore"):
        corners = [float(operation(a, b)) for a in first for b in other]
    return (-np.inf, np.inf) if any(map(np.isnan, corners)) else (min(corners), max(corners))


def _shifted(number: float, places: float) -> float:
    return number * 2.0 ** min(places, 1000.0)


def _power(number: float, exponent: float) -> float:
    return float(np.power(np.float64(number), np.float64(exponent)))
