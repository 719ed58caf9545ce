"""Labels in the place of weights: their numbers tell which element of which constant has come to which place."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import onnx_ir as ir

from moec.passes.graph.edits import is_op
from moec.passes.raising.block import Block
from moec.passes.raising.dataflow import Array, DataFlow
from moec.passes.raising.failure import NotUnderstoodError
from moec.passes.raising.pieces import SCATTERED, pieces
from moec.passes.raising.router import expert_vectors
from moec.passes.raising.weights import Entry, EntryPlace

ROUNDING = 1e-3
MOST_PIECES = 64


@dataclasses.dataclass(frozen=True)
class Labels:
    """Constants of a block that may be weights and biases of its experts, and the label of the first element of each.
    Labels begin with 1. There is a gap between those of two constants, so that the two are never taken for one."""

    block: Block
    parts: list[ir.Value]
    starts: Array

    @staticmethod
    def of(block: Block) -> Labels:
        dataflow = block.dataflow
        used = dict.fromkeys(v for node in block.nodes for v in node.inputs if v is not None and dataflow.constant(v))
        routers = _constants_of_router(block)
        weights = [value for value in used if value not in routers and _may_be_weight(block, value)]
        return Labels(block, weights, _starts(dataflow, weights))

    def summands(self) -> list[dict[ir.Value, Array]]:
        """Constants whose sum holds the labels. A linear function of the labels is therefore the sum of its results for
        them. They take no memory: the first holds the start of each constant, the others the distances of elements
        along an axis."""
        shapes = {part: self.block.dataflow.shape(part) for part in self.parts}
        summands = [
            {v: np.broadcast_to(float(start), shapes[v]) for v, start in zip(self.parts, self.starts, strict=False)}
        ]
        for axis in range(max(map(len, shapes.values()), default=0)):
            summands.append({value: _away(shape, axis) for value, shape in shapes.items()})
        return summands

    def ones(self) -> list[dict[ir.Value, Array]]:
        return [{value: np.broadcast_to(1.0, self.block.dataflow.shape(value)) for value in self.parts}]

    def entry(self, labels: Array, columns: Array, scale: float) -> Entry:
        """The places of an entry from the labels [rows,m] at some of its columns, and a factor for all of them. Raises
        NotUnderstoodError if they are too many."""
        owner = np.searchsorted(self.starts, labels, side="right") - 1
        places = []
        for rows, across, first, strides in pieces(labels, columns, owner):
            number = int(np.searchsorted(self.starts, first, side="right")) - 1
            start, at = int(first - self.starts[number]), (rows.start, across.start)
            shape = rows.stop - rows.start, across.stop - across.start
            place = EntryPlace(self.parts[number], start, strides, shape, at, scale)
            ends, size = place.reaches(), math.prod(self.block.dataflow.shape(place.part))
            if ends[0] < 0 or ends[1] >= size or len(places) == MOST_PIECES:
                raise NotUnderstoodError(SCATTERED)
            places.append(place)
        return tuple(places)

    def vector(self, labels: Array, scale: float) -> Entry:
        """The places of a vector that holds these labels [n]; see :meth:`entry`."""
        column = self.entry(labels[:, None], np.zeros(1, np.int64), scale)
        return tuple(EntryPlace(p.part, p.start, p.strides[:1], p.shape[:1], p.at[:1], scale) for p in column)


def _starts(dataflow: DataFlow, parts: list[ir.Value]) -> Array:
    sizes = (math.prod(dataflow.shape(part)) + number for number, part in enumerate(parts, 1))
    return np.array([*itertools.accumulate(sizes, initial=1)])


def _away(shape: tuple[int, ...], axis: int) -> Array:
    """Number of elements from the first along an axis to each element of a constant of this shape."""
    if axis >= len(shape):
        return np.broadcast_to(0.0, shape)
    steps = np.arange(shape[axis], dtype=np.float64) * math.prod(shape[axis + 1 :])
    return np.broadcast_to(steps.reshape(-1, *[1] * (len(shape) - axis - 1)), shape)


def whole(labels: Array) -> Array:
    """Labels as integers. Raises NotUnderstoodError if they are not: something was computed from them."""
    rounded = np.rint(labels)
    if not np.isfinite(labels).all() or np.abs(labels - rounded).max(initial=0) > ROUNDING:
        raise NotUnderstoodError("its tokens are multiplied by more than weights")
    return rounded.astype(np.int64)


def _may_be_weight(block: Block, value: ir.Value) -> bool:
    dataflow = block.dataflow
    if value.dtype is not None and not value.dtype.is_floating_point():
        return False
    return math.prod(dataflow.shape(value)) > 1 and not dataflow.is_mask(value)


def _constants_of_router(block: Block) -> set[ir.Value]:
    """Constants that the selection of experts is computed from, and numbers per expert."""
    whole_numbers = [
        v
        for node in block.router_nodes()
        for v in node.outputs
        if v.dtype is not None and not v.dtype.is_floating_point()
    ]
    nodes = block.dataflow.between(whole_numbers, lambda v: v is block.logits or is_op(v.producer(), "Shape"))
    return {v for node in nodes for v in node.inputs if v is not None} | set(expert_vectors(block))
