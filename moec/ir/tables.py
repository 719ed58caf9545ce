"""Tables that a graph reads: constants, and values that move their elements. An entry that was never read is not known,
therefore each has to be read, by an operator that picks elements or by a product with zeros and ones."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.ir.facts import MOST_ENTRIES, Facts
from moec.ir.product_labels import labels_of
from moec.ir.sides import Condition, Given, Live, Reads, Takes, counted, positions

Array = np.ndarray[Any, Any]
PICKING = frozenset({"Gather", "GatherElements", "GatherND", "Slice"})
MIXING = frozenset({"Einsum", "MatMul", "Mul", "Where"})
"""Operators that read a table where another operand is not 0, or true."""


def picked(node: ir.Node, facts: Facts) -> tuple[Condition, ...]:
    """Each number of the table has to be picked; of one too large to look at each place along the axis."""
    data = node.inputs[0]
    if data is None or data not in facts.tables:
        return ()
    numbers = facts.numbers.get(data)
    if numbers is not None:
        return (Takes(numbers),) if numbers.size > 1 else ()
    shape = None if data.shape is None else data.shape.numpy() if data.shape.is_static() else None
    if shape is None or len(shape) == 0 or math.prod(shape) <= MOST_ENTRIES:  # text, or what is not looked at
        return ()
    if node.op_type == "Slice":
        return (Reads(2, lambda inputs, outputs, live: np.array([True, _is_whole(inputs, outputs)])),)
    axis = 0 if node.op_type == "GatherND" else node.attributes.get_int("axis", 0) % len(shape)
    size = int(shape[axis])

    def read(inputs: Given, outputs: Given, live: Live) -> Array:
        places = inputs[1]
        assert places is not None
        read_entries = np.zeros(size, bool)
        read_entries[(places[..., 0] if node.op_type == "GatherND" else places).ravel() % size] = True
        return read_entries & (live is None or bool(live.any()))

    return (Reads(size, read),)


def _is_whole(inputs: Given, outputs: Given) -> bool:
    return inputs[0] is not None and outputs[0] is not None and inputs[0].shape == outputs[0].shape


def mixed(node: ir.Node, facts: Facts) -> tuple[Condition, ...]:
    """Each different entry of a table has to be where the other operand is not 0, if decisions make that 0."""
    conditions: list[Condition] = []
    for place, value in enumerate(node.inputs):
        table = None if value is None else facts.constants.array(value, MOST_ENTRIES)
        if table is None or table.size < 2 or table.dtype.kind not in "fiub":
            continue
        others = [value for other, value in enumerate(node.inputs) if other != place]
        if node.op_type == "Where":
            conditions += _chosen(place, table)
        elif len(others) == 1 and others[0] in facts.switched:
            conditions += _multiplied(place, table) if node.op_type == "Mul" else _contracted(node, place, table)
    return tuple(conditions)


def _chosen(place: int, table: Array) -> list[Condition]:
    if not place:
        return []
    classes = _classes(table)

    def read(inputs: Given, outputs: Given, live: Live) -> Array:
        condition, result = inputs[0], outputs[0]
        assert condition is not None and result is not None
        taken = np.broadcast_to(condition.astype(bool) == (place == 1), result.shape)
        return _met(classes, counted(taken, live))

    return [Reads(_count(classes), read)]


def _multiplied(place: int, table: Array) -> list[Condition]:
    classes = _classes(table)

    def read(inputs: Given, outputs: Given, live: Live) -> Array:
        other, result = inputs[1 - place], outputs[0]
        assert other is not None and result is not None
        return _met(classes, counted(np.broadcast_to(other != 0, result.shape), live))

    return [Reads(_count(classes), read)]


def _contracted(node: ir.Node, place: int, table: Array) -> list[Condition]:
    """Rows of a table along the axes that a product shares with the other operand."""
    data = node.inputs[1 - place]
    if data is None or data.shape is None:
        return []
    ranks = [len(data.shape), table.ndim]
    terms = labels_of(node, ranks if place else ranks[::-1])
    if terms is None or len(terms) != 3:
        return []
    own, other = terms[place], terms[1 - place]
    shared = [label for label in own if label in other]
    if not shared:
        return []
    rows = np.moveaxis(table, [own.index(label) for label in shared], range(len(shared)))
    size = math.prod(rows.shape[: len(shared)])
    classes = _classes(rows.reshape(size, -1), rows=True)

    def read(inputs: Given, outputs: Given, live: Live) -> Array:
        array = inputs[1 - place]
        assert array is not None
        axes = tuple(axis for axis, label in enumerate(other) if label not in shared)
        taken = (array != 0).any(axis=axes)
        order = [label for label in other if label in shared]
        taken = np.transpose(taken, [order.index(label) for label in shared])
        if taken.size != size or (live is not None and not live.any()):
            return np.zeros(_count(classes), bool)
        return _met(classes, taken.reshape(size))

    return [Reads(_count(classes), read)]


def _classes(table: Array, *, rows: bool = False) -> Array:
    """Equal entries, or equal rows, are one class."""
    if rows and table.size > 1 << 16:
        return positions(table[:, 0])
    classes = np.unique(table, axis=0 if rows else None, return_inverse=True)[1]
    return classes.reshape(len(table) if rows else table.shape)


def _count(classes: Array) -> int:
    return int(classes.max(initial=-1)) + 1


def _met(classes: Array, taken: Array) -> Array:
    flags = np.zeros(_count(classes), bool)
    both = np.broadcast_shapes(classes.shape, taken.shape)
    flags[np.broadcast_to(classes, both)[np.broadcast_to(taken, both)]] = True
    return flags
