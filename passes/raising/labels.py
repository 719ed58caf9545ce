"""Labels in the place of weights: which element of which constant has come to where, told by its number."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from moec.passes.graph.edits import is_op
from moec.passes.raising.block import Block
from moec.passes.raising.dataflow import Array
from moec.passes.raising.failure import NotUnderstoodError
from moec.passes.raising.router import expert_vectors
from moec.passes.raising.weights import Place

ROUNDING = 1e-3


@dataclasses.dataclass(frozen=True)
class Labels:
    """Constants of a block that may be weights and biases of its experts, and the label of the first element of each.
    Labels begin with 1."""

    block: Block
    parts: list[ir.Value]
    starts: Array

    @staticmethod
    def of(block: Block) -> Labels:
        dataflow = block.dataflow
        used = dict.fromkeys(v for node in block.nodes for v in node.inputs if v is not None and dataflow.constant(v))
        routers = _constants_of_router(block)
        parts = [value for value in used if value not in routers and _may_be_weight(block, value)]
        sizes = [math.prod(dataflow.shape(part)) for part in parts]
        return Labels(block, parts, np.array([1, *itertools.accumulate(sizes, initial=1)][1:]))

    def summands(self) -> list[dict[ir.Value, Array]]:
        """Constants whose sum holds the labels: what comes of them, which is linear, has to be added up. None takes
        memory: the first holds where each constant starts, the others how far elements are away along an axis."""
        shapes = {part: self.block.dataflow.shape(part) for part in self.parts}
        found = [
            {p: np.broadcast_to(float(start), shapes[p]) for p, start in zip(self.parts, self.starts, strict=False)}
        ]
        for axis in range(max(map(len, shapes.values()), default=0)):
            found.append({part: _away(shape, axis) for part, shape in shapes.items()})
        return found

    def ones(self) -> list[dict[ir.Value, Array]]:
        return [{part: np.broadcast_to(1.0, self.block.dataflow.shape(part)) for part in self.parts}]

    def place(self, labels: Array, indices: Sequence[Array]) -> Place:
        """The place of an entry from the labels that it holds at ``indices`` along each of its axes. Raises
        NotUnderstoodError if it lies in several constants, or not at regular steps."""
        first = labels.flat[0]
        number = int(np.searchsorted(self.starts, first, side="right")) - 1
        strides, expected = [], np.full(labels.shape, first)
        for axis, index in enumerate(indices):
            step = 0 if len(index) == 1 else np.take(labels, 1, axis).flat[0] - first
            strides.append(int(step))
            expected = expected + step * index.reshape([-1 if i == axis else 1 for i in range(labels.ndim)])
        place = Place(self.parts[number], int(first - self.starts[number]), tuple(strides))
        ends = place.reaches(tuple(int(index[-1]) + 1 for index in indices))
        size = self.starts[number + 1] - self.starts[number]
        if not np.array_equal(labels, expected) or ends[0] < 0 or ends[1] >= size:
            raise NotUnderstoodError("the weights of an expert lie scattered, or in several constants")
        return place


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
