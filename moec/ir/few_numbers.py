"""Values that can only be a few numbers, whatever the inputs: flags, selections among constants, entries of tables.

If such values are combined (a product of flags, nested selections, the minimum of several flags), each number is a case
of its own, although no node compares anything. Tables are in :mod:`moec.ir.tables`: each entry is such a case at the
place where it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.ir.movement import moving

Array = np.ndarray[Any, Any]
MOST_PAIRS = 1 << 12
"""Largest number of pairs of numbers that an operator combines; beyond, its result counts as any number."""
FLAGS = np.array([0.0, 1.0])

_KEEPING = moving(casts=False) | {"ReduceMax", "ReduceMin"}
"""Operators whose results are numbers of their first input."""
_COMBINING: dict[str, Callable[[Any, Any], Any]] = {
    "Max": np.maximum,
    "Min": np.minimum,
    "Mul": np.multiply,
    "Pow": np.power,
}
_SHIFTING: dict[str, Callable[[Any, Any], Any]] = {"Add": np.add, "Div": np.divide, "Sub": np.subtract}
_MAPPING: dict[str, Callable[[Any], Any]] = {
    "Abs": np.abs,
    "Exp": np.exp,
    "Log": np.log,
    "Neg": np.negative,
    "Relu": lambda numbers: np.maximum(numbers, 0),
    "Sign": np.sign,
    "Sqrt": np.sqrt,
}
"""Operators that make one number of one number."""
_CLOSED = {(0.0, 1.0), (-1.0, 1.0), (-1.0, 0.0, 1.0)}
"""Sets of numbers whose products are among them."""
PRODUCTS = frozenset({"MatMul", "Einsum"})
MEETING = frozenset({"Where", "ReduceMax", "ReduceMin", "ReduceProd", *_COMBINING, *PRODUCTS})
"""Operators in which values of few numbers meet."""


def few_numbers(nodes: Iterable[ir.Node], constant: Callable[[ir.Value], Array | None]) -> dict[ir.Value, Array]:
    """The numbers, each once and in ascending order, of the values that can only be a few numbers.

    ``nodes`` are in topological order. ``constant`` returns the elements of a constant value; None for a value that is
    not constant or is not looked at.
    """
    numbers_of: dict[ir.Value, Array | None] = {}

    def of(value: ir.Value | None) -> Array | None:
        if value is None:
            return None
        if value not in numbers_of:
            array = constant(value)
            numeric = array is not None and array.dtype.kind in "fiub"
            numbers_of[value] = _distinct(array) if numeric and array is not None else _of_type(value)
        return numbers_of[value]

    for node in nodes:
        result = _of_node(node, [of(value) for value in node.inputs])
        for value in node.outputs:
            numbers_of[value] = _of_type(value) if result is None else result
    return {value: numbers for value, numbers in numbers_of.items() if numbers is not None}


def cases(node: ir.Node, numbers: Mapping[ir.Value, Array]) -> Array | None:
    """The numbers of a node's result, where each is a case of its own."""
    return numbers.get(node.outputs[0]) if node.op_type in MEETING else None


def _distinct(array: Array) -> Array:
    """Each number once, ascending, without NaN."""
    distinct = np.unique(array.astype(np.float64))
    return distinct[~np.isnan(distinct)]


def _of_type(value: ir.Value) -> Array | None:
    return FLAGS if value.dtype == ir.DataType.BOOL else None


def _of_node(node: ir.Node, inputs: list[Array | None]) -> Array | None:
    kind = node.op_type
    if kind in _KEEPING:
        return inputs[0]
    if kind in _MAPPING:
        return _mapped(_MAPPING[kind], inputs[0])
    if kind in _COMBINING and len(inputs) == 2:
        return _combined(_COMBINING[kind], *inputs)
    if kind in _SHIFTING and any(numbers is not None and numbers.size == 1 for numbers in inputs):
        return _combined(_SHIFTING[kind], *inputs)
    return _OTHERS[kind](node, inputs) if kind in _OTHERS else None


def _filled(node: ir.Node, inputs: list[Array | None]) -> Array | None:
    fill = node.attributes.get_tensor("value")
    return np.zeros(1) if fill is None else _distinct(fill.numpy())


def _multiplied(node: ir.Node, inputs: list[Array | None]) -> Array | None:
    return inputs[0] if inputs[0] is not None and tuple(inputs[0].tolist()) in _CLOSED else None


def _scattered(node: ir.Node, inputs: list[Array | None]) -> Array | None:
    adds = node.attributes.get_string("reduction", "none") == "add"
    return None if adds else _united([inputs[0], inputs[2]])


def _multiplies(node: ir.Node) -> bool:
    """Whether a product of matrices adds nothing up, because it sums over an axis of size 1."""
    left, right = (value.shape if value is not None else None for value in node.inputs)
    return any(shape is not None and len(shape) > 1 and shape[axis] == 1 for shape, axis in ((left, -1), (right, -2)))


def _mapped(function: Callable[[Any], Any], numbers: Array | None) -> Array | None:
    if numbers is None:
        return None
    with np.errstate(all="ignore"):
        return _distinct(function(numbers))


def _cast(node: ir.Node, numbers: Array | None) -> Array | None:
    """A cast to floats keeps the numbers, a cast to booleans gives flags; any other cast rounds, except of flags."""
    target = ir.DataType(node.attributes.get_int("to", 1))
    if target == ir.DataType.BOOL:
        return FLAGS
    return numbers if numbers is None or target.is_floating_point() or numbers.tolist() == FLAGS.tolist() else None


def _united(parts: list[Array | None]) -> Array | None:
    arrays = [part for part in parts if part is not None]
    return np.unique(np.concatenate(arrays)) if arrays and len(arrays) == len(parts) else None


def _combined(operation: Callable[[Any, Any], Any], first: Array | None, other: Array | None) -> Array | None:
    if first is None or other is None or first.size * other.size > MOST_PAIRS:
        return None
    with np.errstate(all="ignore"):
        return _distinct(operation.outer(first, other))  # type: ignore[attr-defined]


_OTHERS: dict[str, Callable[[ir.Node, list[Array | None]], Array | None]] = {
    "Cast": lambda node, inputs: _cast(node, inputs[0]),
    "Concat": lambda node, inputs: _united(inputs),
    "ConstantOfShape": _filled,
    "MatMul": lambda node, inputs: _combined(np.multiply, *inputs) if _multiplies(node) else None,
    "OneHot": lambda node, inputs: inputs[2],
    "ReduceProd": _multiplied,
    "ScatterElements": _scattered,
    "ScatterND": _scattered,
    "Trilu": lambda node, inputs: _united([inputs[0], np.zeros(1)]),
    "Where": lambda node, inputs: _united(inputs[1:]),
}
