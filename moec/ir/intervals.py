"""Bounds of the numbers that each value of a graph can be, for all inputs: interval arithmetic over nodes.

A value of which nothing is known lies in (-inf, inf). Bounds hold for real arithmetic on finite inputs: rounding may
leave an interval by the last bit, and an overflow leaves it altogether.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from moec.ir.extents import range_of, with_sizes
from moec.ir.movement import moving

Array = np.ndarray[Any, Any]
MOST_BOUNDS = 1 << 16


class Interval(NamedTuple):
    """Smallest and largest number; arrays where a constant has several."""

    low: Any = -math.inf
    high: Any = math.inf

    @property
    def whole(self) -> Interval:
        """One interval that holds all entries; (-inf, inf) if there are none."""
        if np.size(self.low) == 0:
            return Interval()
        return Interval(float(np.min(self.low)), float(np.max(self.high)))


ANY = Interval()
NOT_NEGATIVE = Interval(0.0, math.inf)
UNIT = Interval(0.0, 1.0)


def may_hold(relation: str, left: Interval, right: Interval) -> Array:
    """Whether ``left relation right`` (<, <=, >, >=, ==, !=) holds for some numbers of the intervals, by entry."""
    if relation == "<":
        return np.asarray(np.less(left.low, right.high))
    if relation == "<=":
        return np.asarray(np.less_equal(left.low, right.high))
    if relation in (">", ">="):
        return may_hold({">": "<", ">=": "<="}[relation], right, left)
    if relation == "==":
        return np.less_equal(left.low, right.high) & np.less_equal(right.low, left.high)
    same = np.equal(left.low, left.high) & np.equal(right.low, right.high) & np.equal(left.low, right.low)
    return np.asarray(~same)


def intervals(
    nodes: Iterable[ir.Node],
    limits: Mapping[ir.Value, Interval],
    constant: Callable[[ir.Value], Array | None],
    most: float = math.inf,
) -> dict[ir.Value, Interval]:
    """Intervals of all values that ``nodes``, in topological order, use and compute. ``limits`` are those of inputs;
    ``constant`` gives the numbers of a constant value, None for one that has none or too many to look at; ``most`` is
    the largest size of any axis."""
    interval_of = dict(limits)

    def of(value: ir.Value | None) -> Interval:
        if value is None:
            return ANY
        if value not in interval_of:
            array = constant(value)
            numbers = array is not None and array.size <= MOST_BOUNDS and array.dtype.kind in "fiub"
            interval_of[value] = Interval(array, array) if numbers and array is not None else type_limits(value)
        return interval_of[value]

    for node in nodes:
        inputs = [of(value) for value in node.inputs]
        results = _RULES.get(node.op_type, _unknown)(node, inputs)
        for value, result in zip(node.outputs, results, strict=False):
            interval_of[value] = _limited(node, value, Interval(*with_sizes(node.op_type, inputs, result, most)))
    return interval_of


def type_limits(value: ir.Value) -> Interval:
    """Interval of all numbers of a value's type: finite numbers of a float type, the range of an integer type."""
    if value.dtype is None or value.dtype in (ir.DataType.STRING, ir.DataType.UNDEFINED):
        return ANY
    if value.dtype == ir.DataType.BOOL:
        return UNIT
    if value.dtype.is_floating_point():
        return ANY if value.dtype.itemsize < 4 else Interval(*(_float_limits(value.dtype.numpy())))
    limits = np.iinfo(value.dtype.numpy()) if value.dtype.itemsize >= 1 else None
    return ANY if limits is None else Interval(float(limits.min), float(limits.max))


def _float_limits(dtype: np.dtype[Any]) -> tuple[float, float]:
    limits = np.finfo(dtype)
    return float(limits.min), float(limits.max)


def _limited(node: ir.Node, value: ir.Value, result: Interval) -> Interval:
    """Limit a result to its type; integers of few bits and products of integers that may wrap around have all of it."""
    limits = type_limits(value)
    if value.dtype is not None and value.dtype.is_integer() and (value.dtype.itemsize < 4 or node.op_type == "Mul"):
        low, high = result.whole
        if value.dtype.itemsize < 8 and (low < limits.low or high > limits.high):
            return limits
    return _meet(result, limits)


def _meet(first: Interval, other: Interval) -> Interval:
    return Interval(np.maximum(first.low, other.low), np.minimum(first.high, other.high))


def _unknown(node: ir.Node, inputs: Sequence[Interval]) -> list[Interval]:
    return [ANY] * len(node.outputs)


def _fixed(*results: Interval) -> Callable[[ir.Node, Sequence[Interval]], list[Interval]]:
    return lambda node, inputs: list(results)


def _moved(node: ir.Node, inputs: Sequence[Interval]) -> list[Interval]:
    """All outputs lie between elements of the first input."""
    return [inputs[0].whole] * len(node.outputs)


def _united(node: ir.Node, inputs: Sequence[Interval]) -> list[Interval]:
    return [_union([interval.whole for interval in inputs])]


def _union(parts: Sequence[Interval]) -> Interval:
    return Interval(min(interval.low for interval in parts), max(interval.high for interval in parts))


def _monotone(function: Callable[[float], float]) -> Callable[[ir.Node, Sequence[Interval]], list[Interval]]:
    def rule(node: ir.Node, inputs: Sequence[Interval]) -> list[Interval]:
        low, high = inputs[0].whole
        return [Interval(_safely(function, low), _safely(function, high))]

    return rule


def _safely(function: Callable[[float], float], x: float) -> float:
    try:
        return function(x)
    except OverflowError:
        return math.inf
    except ValueError:  # a root of what may be less than 0
        return -math.inf


def _corners(operation: Callable[[float, float], float]) -> Callable[[ir.Node, Sequence[Interval]], list[Interval]]:
    """Rule of an operation of two inputs with extremes at the corners; unbounded if it is undefined at one."""

    def rule(node: ir.Node, inputs: Sequence[Interval]) -> list[Interval]:
        corners = [operation(a, b) for a in inputs[0].whole for b in inputs[1].whole]
        return [ANY if any(map(math.isnan, corners)) else Interval(min(corners), max(corners))]

    return rule


def _times(a: float, b: float) -> float:
    return 0.0 if a == 0 or b == 0 else a * b


def _quotient(node: ir.Node, inputs: Sequence[Interval]) -> list[Interval]:
    low, high = inputs[1].whole
    if low <= 0 <= high:
        return [ANY if low < 0 or inputs[0].whole.low < 0 else NOT_NEGATIVE]
    inverse = Interval(1 / high if math.isfinite(high) else 0.0, 1 / low if math.isfinite(low) else 0.0)
    (quotient,) = _corners(_times)(node, [inputs[0], Interval(min(inverse), max(inverse))])
    return [_stepped(quotient) if _is_integer(node.outputs[0]) else quotient]


def _remainder(node: ir.Node, inputs: Sequence[Interval]) -> list[Interval]:
    low, high = inputs[1].whole
    return [Interval(0.0, high) if low > 0 and inputs[0].whole.low >= 0 else ANY]


def _stepped(interval: Interval) -> Interval:
    """Interval after rounding to integers in any direction."""
    low, high = interval.whole
    return Interval(_floor(low), _ceil(high))


def _floor(x: float) -> float:
    return float(math.floor(x)) if math.isfinite(x) else x


def _ceil(x: float) -> float:
    return float(math.ceil(x)) if math.isfinite(x) else x


def _is_integer(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.is_integer()


def _cast(node: ir.Node, inputs: Sequence[Interval]) -> list[Interval]:
    target = ir.DataType(node.attributes.get_int("to", 1))
    if target == ir.DataType.BOOL:
        return _compared("!=", "==")(node, [inputs[0], Interval(0.0, 0.0)])
    return [_stepped(inputs[0]) if target.is_integer() else inputs[0].whole]


def _summed(node: ir.Node, inputs: Sequence[Interval]) -> list[Interval]:
    """Interval of sums of any number of terms, also of none."""
    low, high = inputs[0].whole
    return [Interval(0.0 if low >= 0 else -math.inf, 0.0 if high <= 0 else math.inf)]


def _clipped(node: ir.Node, inputs: Sequence[Interval]) -> list[Interval]:
    result = inputs[0].whole
    if len(inputs) > 1 and node.inputs[1] is not None:
        result = Interval(max(result.low, inputs[1].whole.low), max(result.high, inputs[1].whole.high))
    if len(inputs) > 2 and node.inputs[2] is not None:
        result = Interval(min(result.low, inputs[2].whole.low), min(result.high, inputs[2].whole.high))
    return [result]


def _largest(node: ir.Node, inputs: Sequence[Interval]) -> list[Interval]:
    return [Interval(max(interval.whole.low for interval in inputs), max(interval.whole.high for interval in inputs))]


def _smallest(node: ir.Node, inputs: Sequence[Interval]) -> list[Interval]:
    return [Interval(min(interval.whole.low for interval in inputs), min(interval.whole.high for interval in inputs))]


def _absolute(node: ir.Node, inputs: Sequence[Interval]) -> list[Interval]:
    low, high = inputs[0].whole
    return [Interval(max(low, -high, 0.0), max(-low, high))]


def _negated(node: ir.Node, inputs: Sequence[Interval]) -> list[Interval]:
    low, high = inputs[0].whole
    return [Interval(-high, -low)]


def _positions(node: ir.Node, inputs: Sequence[Interval]) -> Interval:
    """Positions along the axis that a selection looks through."""
    shape = node.inputs[0].shape if node.inputs and node.inputs[0] is not None else None
    axis = node.attributes.get_int("axis", -1 if node.op_type == "TopK" else 0)
    size = shape[axis] if shape is not None and -len(shape) <= axis < len(shape) else None
    return Interval(0.0, float(size - 1)) if isinstance(size, int) and size > 0 else NOT_NEGATIVE


def _selected(node: ir.Node, inputs: Sequence[Interval]) -> list[Interval]:
    return [inputs[0].whole, _positions(node, inputs)]


def _sizes(node: ir.Node, inputs: Sequence[Interval]) -> list[Interval]:
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    if shape is None:
        return [NOT_NEGATIVE]
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", len(shape))
    sizes = shape[start:end]
    low = np.array([size if isinstance(size, int) else 0 for size in sizes], float)
    high = np.array([size if isinstance(size, int) else math.inf for size in sizes], float)
    return [Interval(low, high)]


def _gathered(node: ir.Node, inputs: Sequence[Interval]) -> list[Interval]:
    """One size out of a shape, or any elements of the data."""
    low, high = inputs[0]
    if np.ndim(low) == 1 and np.size(inputs[1].low) == 1 and np.all(inputs[1].low == inputs[1].high):
        place = int(np.reshape(inputs[1].low, -1)[0])
        if -len(low) <= place < len(low):
            return [Interval(float(low[place]), float(high[place]))]
    return [inputs[0].whole]


def _chosen_between(node: ir.Node, inputs: Sequence[Interval]) -> list[Interval]:
    low, high = inputs[0].whole
    yes, no = (_where(node, place, inputs[place].whole) for place in (1, 2))
    return [_union([*([yes] if high > 0 else []), *([no] if low < 1 else [])])]


_ORDERS = {
    "Less": (True, True),
    "LessOrEqual": (True, False),
    "Greater": (False, True),
    "GreaterOrEqual": (False, False),
}
"""Comparisons: whether numbers that pass lie below the bound, and whether they cannot equal it."""


def _where(choice: ir.Node, place: int, interval: Interval) -> Interval:
    """Interval of a Where's input at its selected elements, if the condition compares it with a constant."""
    condition, value = choice.inputs[0], choice.inputs[place]
    node = None if condition is None else condition.producer()
    if node is None or value is None or node.op_type not in _ORDERS or node.inputs[0] is not value:
        return interval
    bound = node.inputs[1].const_value if node.inputs[1] is not None else None
    if bound is None or not 0 < bound.size <= MOST_BOUNDS:
        return interval
    below, strict = _ORDERS[node.op_type] if place == 1 else tuple(not flag for flag in _ORDERS[node.op_type])
    step = 1.0 if strict and value.dtype is not None and value.dtype.is_integer() else 0.0
    ends = (-math.inf, float(bound.numpy().max()) - step) if below else (float(bound.numpy().min()) + step, math.inf)
    low, high = _meet(interval, Interval(*ends))
    return Interval(float(low), float(high)) if low <= high else interval


def _scattered(node: ir.Node, inputs: Sequence[Interval]) -> list[Interval]:
    reduction = node.attributes.get_string("reduction", "none")
    if reduction == "none" and _overwrites_all(node):
        return [inputs[2].whole]
    both = _union([inputs[0].whole, inputs[2].whole])
    if reduction == "none" or reduction in ("max", "min"):
        return [both]
    return [NOT_NEGATIVE if both.low >= 0 and reduction == "add" else ANY]


def _overwrites_all(node: ir.Node) -> bool:
    """Whether a ScatterElements along an axis of one element replaces all elements."""
    data, places = (value.shape if value is not None else None for value in node.inputs[:2])
    axis = node.attributes.get_int("axis", 0)
    return (
        node.op_type == "ScatterElements"
        and data is not None
        and places is not None
        and len(data) == len(places)
        and all(a == b and (isinstance(a, int) or a.value is not None) for a, b in zip(data, places, strict=True))
        and data[axis] == 1
    )


def _filled(node: ir.Node, inputs: Sequence[Interval]) -> list[Interval]:
    value = node.attributes.get_tensor("value")
    number = 0.0 if value is None else float(value.numpy().ravel()[0])
    return [Interval(number, number)]


def _power(node: ir.Node, inputs: Sequence[Interval]) -> list[Interval]:
    exponent = inputs[1].whole
    even = exponent.low == exponent.high and exponent.low % 2 == 0
    return [NOT_NEGATIVE if even or inputs[0].whole.low >= 0 else ANY]


def _products_summed(node: ir.Node, inputs: Sequence[Interval]) -> list[Interval]:
    """Sums of products of numbers that are never negative are not negative; other cases have no bound."""
    return [NOT_NEGATIVE if all(operand.whole.low >= 0 for operand in inputs) else ANY]


def _compared(relation: str, opposite: str) -> Callable[[ir.Node, Sequence[Interval]], list[Interval]]:
    def rule(node: ir.Node, inputs: Sequence[Interval]) -> list[Interval]:
        left, right = inputs[0].whole, inputs[1].whole
        return [Interval(float(not may_hold(opposite, left, right)), float(may_hold(relation, left, right)))]

    return rule


_RULES: dict[str, Callable[[ir.Node, Sequence[Interval]], list[Interval]]] = {
    **dict.fromkeys((*moving(casts=False), "ReduceMax", "ReduceMean", "ReduceMin"), _moved),
    **dict.fromkeys(("Einsum", "MatMul"), _products_summed),
    **dict.fromkeys(("HardSigmoid", "IsInf", "IsNaN", "Sigmoid", "Softmax", "Xor"), _fixed(UNIT)),
    **dict.fromkeys(("ReduceL1", "ReduceL2", "ReduceSumSquare", "Size", "NonZero"), _fixed(NOT_NEGATIVE)),
    "Abs": _absolute,
    "And": _smallest,
    "Add": _corners(lambda a, b: a + b),
    "ArgMax": lambda node, inputs: [_positions(node, inputs)],
    "ArgMin": lambda node, inputs: [_positions(node, inputs)],
    "Cast": _cast,
    "Ceil": _monotone(_ceil),
    "Clip": _clipped,
    "Concat": _united,
    "ConstantOfShape": _filled,
    "CumSum": _summed,
    "Div": _quotient,
    "Equal": _compared("==", "!="),
    "Exp": _monotone(lambda x: math.exp(x) if x < 709 else math.inf),
    "Floor": _monotone(_floor),
    "Gather": _gathered,
    "Greater": _compared(">", "<="),
    "GreaterOrEqual": _compared(">=", "<"),
    "Less": _compared("<", ">="),
    "LessOrEqual": _compared("<=", ">"),
    "Max": _largest,
    "Min": _smallest,
    "Mod": _remainder,
    "Mul": _corners(_times),
    "Neg": _negated,
    "Not": lambda node, inputs: [Interval(1 - inputs[0].whole.high, 1 - inputs[0].whole.low)],
    "Or": _largest,
    "OneHot": lambda node, inputs: [inputs[2].whole],
    "Pow": _power,
    "Range": lambda node, inputs: [Interval(*range_of(*(operand.whole for operand in inputs)))],
    "ReduceSum": _summed,
    "Relu": _monotone(lambda x: max(x, 0.0)),
    "Round": lambda node, inputs: [_stepped(inputs[0])],
    "ScatterElements": _scattered,
    "ScatterND": _scattered,
    "Shape": _sizes,
    "Softplus": _fixed(NOT_NEGATIVE),
    "Sqrt": _monotone(math.sqrt),
    "Sub": _corners(lambda a, b: a - b),
    "Tanh": _fixed(Interval(-1.0, 1.0)),
    "TopK": _selected,
    "Trilu": lambda node, inputs: [_union([inputs[0].whole, Interval(0.0, 0.0)])],
    "Where": _chosen_between,
}
