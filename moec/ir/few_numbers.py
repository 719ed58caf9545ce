"""Values that can be only a few numbers, whatever the inputs: flags, choices among constants, entries of tables.

Where two such values meet (a product of flags, a choice inside of a choice), and where a table is read, each number is
a case of its own, although no node compares anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.ir.movement import moving

Array = np.ndarray[Any, Any]
MOST_PAIRS = 1 << 12
"""How many pairs of numbers an operator may combine before its result counts as any number."""
FLAGS = np.array([0.0, 1.0])

READING = frozenset({"Gather", "GatherElements", "GatherND", "Slice"})
"""Operators that read a table, where their data is constant."""
_KEEPING = moving(casts=False) | {"ReduceMax", "ReduceMin"}
"""Operators whose results are numbers of their first input."""
_COMBINING: dict[str, Callable[[Any, Any], Any]] = {
    "Max": np.maximum,
    "Min": np.minimum,
    "Mul": np.multiply,
}
_SHIFTING: dict[str, Callable[[Any, Any], Any]] = {"Add": np.add, "Sub": np.subtract}
MEETING = frozenset({"Where", *_COMBINING})
"""Operators in which values of few numbers meet."""


def few_numbers(nodes: Iterable[ir.Node], constant: Callable[[ir.Value], Array | None]) -> dict[ir.Value, Array]:
    """The numbers, each once and in order, that values can be which can be only a few. ``nodes`` are in topological
    order; ``constant`` gives the elements of a constant value, None for one that is none or is not looked at."""
    found: dict[ir.Value, Array | None] = {}

    def of(value: ir.Value | None) -> Array | None:
        if value is None:
            return None
        if value not in found:
            array = constant(value)
            numeric = array is not None and array.dtype.kind in "fiub"
            found[value] = _distinct(array) if numeric and array is not None else _of_type(value)
        return found[value]

    for node in nodes:
        result = _of_node(node, [of(value) for value in node.inputs])
        for value in node.outputs:
            found[value] = _of_type(value) if result is None else result
    return {value: numbers for value, numbers in found.items() if numbers is not None}


def cases(
    node: ir.Node, numbers: Mapping[ir.Value, Array], constant: Callable[[ir.Value], Array | None]
) -> Array | None:
    """The numbers of a node's result, where each is a case of its own."""
    if node.op_type in MEETING:
        return numbers.get(node.outputs[0])
    data = node.inputs[0] if node.op_type in READING else None
    return numbers.get(node.outputs[0]) if data is not None and constant(data) is not None else None


def _distinct(array: Array) -> Array:
    """NaN left out."""
    found = np.unique(array.astype(np.float64))
    return found[~np.isnan(found)]


def _of_type(value: ir.Value) -> Array | None:
    return FLAGS if value.dtype == ir.DataType.BOOL else None


def _of_node(node: ir.Node, inputs: list[Array | None]) -> Array | None:
    kind = node.op_type
    if kind in _KEEPING:
        return inputs[0]
    if kind == "Cast":
        return _cast(node, inputs[0])
    if kind == "Where":
        return _united(inputs[1:])
    if kind == "OneHot":
        return inputs[2]
    if kind == "Concat":
        return _united(inputs)
    if kind in ("ScatterElements", "ScatterND") and node.attributes.get_string("reduction", "none") != "add":
        return _united([inputs[0], inputs[2]])
    if kind in _COMBINING and len(inputs) == 2:
        return _combined(_COMBINING[kind], *inputs)
    if kind in _SHIFTING and any(numbers is not None and numbers.size == 1 for numbers in inputs):
        return _combined(_SHIFTING[kind], *inputs)
    return None


def _cast(node: ir.Node, numbers: Array | None) -> Array | None:
    """What stays a number is kept; a cast that rounds or cuts makes others."""
    target = ir.DataType(node.attributes.get_int("to", 1))
    if target == ir.DataType.BOOL:
        return FLAGS
    return numbers if numbers is None or target.is_floating_point() or numbers.tolist() == FLAGS.tolist() else None


def _united(parts: list[Array | None]) -> Array | None:
    known = [part for part in parts if part is not None]
    return np.unique(np.concatenate(known)) if known and len(known) == len(parts) else None


def _combined(operation: Callable[[Any, Any], Any], one: Array | None, other: Array | None) -> Array | None:
    if one is None or other is None or one.size * other.size > MOST_PAIRS:
        return None
    with np.errstate(all="ignore"):
        return _distinct(operation.outer(one, other))  # type: ignore[attr-defined]
