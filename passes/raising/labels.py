"""Labels in the place of weights: which element of which constant has come to where, told by its number."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import onnx_ir as ir

from moec.ir.weights.stacks import ExpertStack
from moec.passes.graph.edits import is_op
from moec.passes.raising.block import Block
from moec.passes.raising.dataflow import Array, DataFlow
from moec.passes.raising.failure import NotUnderstoodError
from moec.passes.raising.pieces import SCATTERED, pieces
from moec.passes.raising.router import expert_vectors
from moec.passes.raising.weights import Entry, Place

ROUNDING = 1e-3
MOST_PIECES = 64
FEW = 64
"""Elements that tell most constants apart."""


@dataclasses.dataclass(frozen=True)
class Labels:
    """Constants of a block that may be weights and biases of its experts, and the label of the first element of each.
    Labels begin with 1. Those of two constants never follow each other, lest they be taken for one.

    ``copies``: constants that hold the same elements in the same order as one of ``parts``, and its number.
    """

    block: Block
    parts: list[ir.Value]
    starts: Array
    copies: dict[ir.Value, int]

    @staticmethod
    def of(block: Block) -> Labels:
        dataflow = block.dataflow
        used = dict.fromkeys(v for node in block.nodes for v in node.inputs if v is not None and dataflow.constant(v))
        routers = _constants_of_router(block)
        weights = [value for value in used if value not in routers and _may_be_weight(block, value)]
        return Labels(block, weights, _starts(dataflow, weights), {})

    def with_copies(self) -> Labels:
        """One label for elements of constants that hold the same: experts that are computed in several places may have
        a copy in each."""
        dataflow, copies = self.block.dataflow, _copies(self.block.dataflow, self.parts)
        parts = [part for part in self.parts if part not in copies]
        numbers = {value: parts.index(part) for value, part in copies.items()}
        return Labels(self.block, parts, _starts(dataflow, parts), numbers)

    @property
    def _all(self) -> dict[ir.Value, int]:
        """All constants with the number of that one of ``parts`` that they are or copy."""
        return {**{part: number for number, part in enumerate(self.parts)}, **self.copies}

    def summands(self) -> list[dict[ir.Value, Array]]:
        """Constants whose sum holds the labels: what comes of them, which is linear, has to be added up. None takes
        memory: the first holds where each constant starts, the others how far elements are away along an axis."""
        shapes = {value: self.block.dataflow.shape(value) for value in self._all}
        found = [{v: np.broadcast_to(float(self.starts[number]), shapes[v]) for v, number in self._all.items()}]
        for axis in range(max(map(len, shapes.values()), default=0)):
            found.append({value: _away(shape, axis) for value, shape in shapes.items()})
        return found

    def ones(self) -> list[dict[ir.Value, Array]]:
        return [{value: np.broadcast_to(1.0, self.block.dataflow.shape(value)) for value in self._all}]

    def entry(self, labels: Array, columns: Array, scale: float) -> Entry:
        """The places of an entry from the labels [rows,m] that it holds at some of its columns, and what all of them
        are multiplied by. Raises NotUnderstoodError if they are too many."""
        owner = np.searchsorted(self.starts, labels, side="right") - 1
        found = []
        for rows, across, first, strides in pieces(labels, columns, owner):
            number = int(np.searchsorted(self.starts, first, side="right")) - 1
            start, at = int(first - self.starts[number]), (rows.start, across.start)
            shape = rows.stop - rows.start, across.stop - across.start
            place = Place(self.parts[number], start, strides, shape, at, scale)
            ends, size = place.reaches(), math.prod(self.block.dataflow.shape(place.part))
            if ends[0] < 0 or ends[1] >= size or len(found) == MOST_PIECES:
                raise NotUnderstoodError(SCATTERED)
            found.append(place)
        return tuple(found)

    def vector(self, labels: Array, scale: float) -> Entry:
        """The same of a vector that holds these labels [n]."""
        column = self.entry(labels[:, None], np.zeros(1, np.int64), scale)
        return tuple(Place(p.part, p.start, p.strides[:1], p.shape[:1], p.at[:1], scale) for p in column)


def _starts(dataflow: DataFlow, parts: list[ir.Value]) -> Array:
    sizes = (math.prod(dataflow.shape(part)) + number for number, part in enumerate(parts, 1))
    return np.array([*itertools.accumulate(sizes, initial=1)])


def _away(shape: tuple[int, ...], axis: int) -> Array:
    """How many elements lie between one of a constant of this shape and the first along an axis."""
    if axis >= len(shape):
        return np.broadcast_to(0.0, shape)
    steps = np.arange(shape[axis], dtype=np.float64) * math.prod(shape[axis + 1 :])
    return np.broadcast_to(steps.reshape(-1, *[1] * (len(shape) - axis - 1)), shape)


def whole(labels: Array) -> Array:
    """Labels as integers. Raises NotUnderstoodError if they are none: something was computed of them."""
    rounded = np.rint(labels)
    if not np.isfinite(labels).all() or np.abs(labels - rounded).max(initial=0) > ROUNDING:
        raise NotUnderstoodError("what multiplies its tokens is not weights alone")
    return rounded.astype(np.int64)


def _may_be_weight(block: Block, value: ir.Value) -> bool:
    dataflow = block.dataflow
    if value.dtype is not None and not value.dtype.is_floating_point():
        return False
    return math.prod(dataflow.shape(value)) > 1 and not dataflow.is_mask(value)


def _copies(dataflow: DataFlow, values: list[ir.Value]) -> dict[ir.Value, ir.Value]:
    """Those of the values that hold the same elements in the same order as an earlier one, which is returned for each.
    Constants that compute themselves when they are read are not looked at."""
    found: dict[ir.Value, ir.Value] = {}
    known: dict[bytes, list[ir.Value]] = {}
    for value in values:
        if isinstance(value.const_value, ExpertStack) or dataflow.stored(value) is not None:
            continue
        array = dataflow.array(value).reshape(-1)
        alike = known.setdefault(array[:FEW].tobytes(), [])
        same = next((other for other in alike if np.array_equal(dataflow.array(other).reshape(-1), array)), None)
        if same is None:
            alike.append(value)
        else:
            found[value] = same
    return found


def _constants_of_router(block: Block) -> set[ir.Value]:
    """What the choice of experts is made of, and numbers per expert."""
    whole_numbers = [
        v
        for node in block.router_nodes()
        for v in node.outputs
        if v.dtype is not None and not v.dtype.is_floating_point()
    ]
    nodes = block.dataflow.between(whole_numbers, lambda v: v is block.logits or is_op(v.producer(), "Shape"))
    return {v for node in nodes for v in node.inputs if v is not None} | set(expert_vectors(block))
