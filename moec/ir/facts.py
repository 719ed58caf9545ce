"""Facts about the values of a graph that need no run: the numbers that they can be, and tables."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from moec.ir.few_numbers import few_numbers
from moec.ir.intervals import MOST_BOUNDS, Interval, intervals
from moec.ir.movement import moving

Array = np.ndarray[Any, Any]
MOST_ENTRIES = 1 << 22
"""The size of a table from which on its numbers are not looked at."""
MOST_SIZES = {4: 1 << 17, 8: 1 << 12}
"""The longest axis for which it is asked whether integers of so many bytes wrap around: in 8 bytes products of four and
five sizes have to fit, too."""
_MOVING = moving(casts=True)


class Constants(Protocol):
    """The constants that may be looked at."""

    def has(self, value: ir.Value) -> bool:
        """Whether a value is one, however large."""
        ...

    def array(self, value: ir.Value, most: int) -> Array | None:
        """The elements of one that has at most so many; None for any other value."""
        ...


class NoConstants:
    """There are none."""

    def has(self, value: ir.Value) -> bool:
        return False

    def array(self, value: ir.Value, most: int) -> Array | None:
        return None


@dataclasses.dataclass(frozen=True)
class Facts:
    """``intervals``: which numbers values can be; ``of_sizes``: the same for integers of 4 and of 8 bytes, for sizes up
    to :data:`MOST_SIZES`. ``numbers``: those of values that can be only a few. ``tables``: values
    whose elements are those of constants. ``switched``: values that decisions make 0."""

    intervals: Mapping[ir.Value, Interval] = dataclasses.field(default_factory=dict)
    of_sizes: Mapping[int, Mapping[ir.Value, Interval]] = dataclasses.field(default_factory=dict)
    numbers: Mapping[ir.Value, Array] = dataclasses.field(default_factory=dict)
    tables: Collection[ir.Value] = ()
    switched: Collection[ir.Value] = ()
    constants: Constants = dataclasses.field(default_factory=NoConstants)


def facts_of(nodes: Sequence[ir.Node], constants: Constants) -> Facts:
    """Facts about everything that ``nodes``, in topological order, use and compute."""
    few = few_numbers(nodes, lambda value: constants.array(value, MOST_ENTRIES))
    ranges = {
        size: intervals(nodes, {}, lambda value: constants.array(value, MOST_BOUNDS), most)
        for size, most in {0: math.inf, **MOST_SIZES}.items()
    }
    return Facts(ranges.pop(0), ranges, few, _tables(nodes, constants), _switched(nodes, few), constants)


def _tables(nodes: Sequence[ir.Node], constants: Constants) -> set[ir.Value]:
    """Constants whose elements are moved, and the values that they are moved to."""
    table_values: set[ir.Value] = set()

    def is_table(value: ir.Value | None) -> bool:
        if value is not None and value not in table_values and constants.has(value):
            table_values.add(value)
        return value in table_values

    for node in nodes:
        moved = node.inputs[:1] if node.op_type in _MOVING else node.inputs if node.op_type == "Concat" else ()
        if moved and all(is_table(value) for value in moved):
            table_values.update(node.outputs)
    return table_values


def _switched(nodes: Sequence[ir.Node], few: Mapping[ir.Value, Array]) -> set[ir.Value]:
    """Values that a flag, or a selection, sets to 0."""
    switched: set[ir.Value] = set()

    def is_switched(value: ir.Value | None) -> bool:
        numbers = None if value is None else few.get(value)
        return value in switched or (numbers is not None and numbers.size > 1 and bool(np.any(numbers == 0)))

    def may_be_zero(value: ir.Value | None) -> bool:
        numbers = None if value is None else few.get(value)
        return numbers is not None and bool(np.any(numbers == 0))

    for node in nodes:
        kind, inputs = node.op_type, node.inputs
        if kind == "Where":
            zero = any(map(may_be_zero, inputs[1:])) or any(map(is_switched, inputs[1:]))
        elif kind in ("ScatterElements", "ScatterND"):
            zero = may_be_zero(inputs[0])
        else:
            zero = any(map(is_switched, inputs if kind == "Mul" else inputs[:1])) and (
                kind in _MOVING or kind in ("Div", "Mul")
            )
        if zero:
            switched.update(node.outputs)
    return switched
