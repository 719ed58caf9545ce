"""Miniatures of blocks: the same operators on narrow weights, so that many trials cost little.

The decisions of a block's operators, and the numbers in them, depend neither on the numbers in its weights nor on their
widths. The trials therefore run on a miniature. It has every node of the block, the same constants besides weights, and
random weights of a few columns. It is isomorphic to the block except for widths, and the argument for isomorphic blocks
(:mod:`moec.passes.raising.isomorphic`) holds here as well. A proposal for the block is accepted if it agrees with the
miniature on all trials, in which every side of every decision was seen, and with the block itself on one trial that
drives every expert. Each expert keeps its own nodes and numbers, so that an expert that differs shows.

1. Widths must not matter: :mod:`moec.passes.raising.column_rules` takes only operators that treat all columns alike.
2. Only constants that the proposal reads as weights of an expert, whole, become narrow. Any other constant of several
   elements that data meets (bounds by entry, masks, scales of columns) leaves the block without a miniature.
3. If there is none, or the proposal differs from it, or a side stays unseen, the trials run on the block itself.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from moec.ir.dialect import ProductSpec
from moec.passes.raising.block import Block
from moec.passes.raising.check import Proposal
from moec.passes.raising.column_rules import Columns, Numbers, Widths, numbers_of_copy
from moec.passes.raising.dataflow import DataFlow
from moec.passes.raising.weights import Entry, EntryPlace, ExpertTensor, strides_of

HIDDEN_UNITS = 32
HIDDEN_SIZE = 24
"""Widths of a miniature's experts; others if widths of the block are equal or one is half of another."""
LEAST_GAIN = 8
"""Least factor by which a miniature's weights have fewer elements."""


def miniature(block: Block, proposal: Proposal) -> tuple[Block, Proposal] | None:
    """The block with narrow experts, and the same proposal for it. None if its operators do not treat all columns
    alike, or its weights are hardly larger."""
    widths = _widths(block.d, proposal)
    shapes = None if widths is None else _shapes(proposal, widths)
    if widths is None or shapes is None or not _is_worthwhile(block, shapes):
        return None
    numbers = numbers_of_copy(Columns(block, shapes.keys(), widths))
    if numbers is None or any(_has_body(node) for node in block.nodes):
        return None
    copy = _Copy(block, widths, shapes)
    small = copy.block(numbers)
    tensors = {name: copy.tensor(tensor, small.dataflow) for name, tensor in proposal.tensors.items()}
    routing = proposal.routing
    bias, places = (None if v is None else copy.value(v) for v in (routing.correction_bias, routing.places))
    routing = dataclasses.replace(routing, correction_bias=bias, places=places)
    return small, Proposal(routing, proposal.spec, tensors, proposal.ids)


def _has_body(node: ir.Node) -> bool:
    return any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values())


def _widths(d: int, proposal: Proposal) -> Widths | None:
    """The width in the miniature for each width of data in the block: tokens, hidden units, and gates beside these."""
    spec, down = proposal.spec, proposal.tensors["down"].shape
    f = down[1] if spec.down_transposed else down[2]
    if spec.hidden_sizes or spec.arithmetic != ProductSpec().arithmetic:
        return None
    units, fused = HIDDEN_UNITS, f != proposal.tensors["up"].shape[2 if spec.up_transposed else 1]
    size = units if d == f else 2 * units if d == 2 * f else HIDDEN_SIZE
    return {d: size, f: units} | ({2 * f: 2 * units} if fused else {})


def _shapes(proposal: Proposal, widths: Widths) -> dict[ir.Value, tuple[int, ...]] | None:
    """The shapes of the miniature's weights. None if one is used in several ways, or is not that of an expert whole."""
    shapes: dict[ir.Value, tuple[int, ...]] = {}
    for tensor in proposal.tensors.values():
        for entry in tensor.entries:
            shape = _shape(tensor.dataflow, entry, tensor.shape[1:], widths)
            if shape is None or shapes.setdefault(entry[0].part, shape) != shape:
                return None
    return shapes


def _shape(dataflow: DataFlow, entry: Entry, shape: tuple[int, ...], widths: Widths) -> tuple[int, ...] | None:
    place = entry[0]
    axes = _axes(dataflow.shape(place.part), place)
    if len(entry) > 1 or place.shape != shape or axes is None or not widths.keys() >= set(shape):
        return None
    sizes = list(dataflow.shape(place.part))
    for axis, size in zip(axes, shape, strict=True):
        sizes[axis] = widths[size]
    return tuple(sizes)


def _axes(sizes: tuple[int, ...], place: EntryPlace) -> list[int] | None:
    """The axis of a constant of these sizes for each axis of the piece; None unless the piece spans these axes
    completely."""
    strides = strides_of(sizes)
    axis_of = {(size, stride): axis for axis, (size, stride) in enumerate(zip(sizes, strides, strict=True)) if size > 1}
    axes = [axis_of.get(pair) for pair in zip(place.shape, place.strides, strict=True)]
    present = [axis for axis in axes if axis is not None]
    index = np.unravel_index(place.start, sizes)
    whole = len(set(present)) == len(axes) and not any(index[axis] for axis in present)
    return present if whole else None


def _is_worthwhile(block: Block, shapes: Mapping[ir.Value, tuple[int, ...]]) -> bool:
    before = sum(math.prod(block.dataflow.shape(value)) for value in shapes)
    return before >= LEAST_GAIN * sum(map(math.prod, shapes.values()))


class _Copy:
    """The counterparts of a block's values in its miniature."""

    def __init__(self, block: Block, widths: Widths, shapes: Mapping[ir.Value, tuple[int, ...]]) -> None:
        self._block, self._widths, self._shapes = block, widths, shapes
        self._random = np.random.default_rng(12)
        self._values: dict[ir.Value, ir.Value] = {}

    def value(self, value: ir.Value) -> ir.Value:
        if value not in self._values:
            constant = self._constant(value)
            shape = value.shape if constant is None else ir.Shape(constant.shape.numpy())
            if constant is None and value in self._block.from_x and value.shape is not None:
                *leading, last = value.shape
                shape = ir.Shape([*leading, self._widths[last] if isinstance(last, int) else last])
            self._values[value] = ir.Value(name=value.name, shape=shape, type=value.type, const_value=constant)
        return self._values[value]

    def _constant(self, value: ir.Value) -> ir.TensorProtocol | None:
        if value in self._shapes:
            shape = self._shapes[value]
            numbers = self._random.normal(size=shape) / math.sqrt(shape[-1] if len(shape) > 1 else 1)
            return ir.tensor(numbers.astype(value.dtype.numpy() if value.dtype else np.float32), name=value.name)
        if not self._block.dataflow.constant(value):
            return None
        return value.const_value or ir.tensor(self._block.dataflow.array(value), name=value.name)

    def block(self, numbers: Mapping[ir.Node, Numbers]) -> Block:
        block = self._block
        ends = [block.x, block.logits, *([] if block.start is None else [block.start]), *block.shape_sources]
        nodes = {node: self._node(node, numbers.get(node, {})) for node in block.nodes}
        inputs = list(dict.fromkeys(map(self.value, ends)))
        constants = [value for value in dict.fromkeys(v for node in nodes.values() for v in node.inputs) if value]
        initializers = [value for value in constants if value.const_value is not None]
        imports = {"": 24, "moec": 1}
        graph = ir.Graph(
            inputs, [self.value(block.y)], nodes=nodes.values(), initializers=initializers, opset_imports=imports
        )
        return dataclasses.replace(
            block,
            dataflow=DataFlow(graph),
            anchor=nodes.get(block.anchor, block.anchor),
            x=self.value(block.x),
            logits=self.value(block.logits),
            y=self.value(block.y),
            nodes=list(nodes.values()),
            shape_sources=list(map(self.value, block.shape_sources)),
            d=self._widths[block.d],
            start=None if block.start is None else self.value(block.start),
            _evaluators={},
            without_zeros={},
        )

    def _node(self, node: ir.Node, numbers: Numbers) -> ir.Node:
        inputs = [None if value is None else self.value(value) for value in node.inputs]
        for place, array in numbers.items():
            name = f"{node.outputs[0].name}.input_{place}"
            inputs[place] = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        outputs = list(map(self.value, node.outputs))
        return ir.Node(node.domain, node.op_type, inputs, node.attributes.values(), outputs=outputs, name=node.name)

    def tensor(self, tensor: ExpertTensor, dataflow: DataFlow) -> ExpertTensor:
        entries = tuple((self._place(tensor.dataflow, entry[0]),) for entry in tensor.entries)
        factor = None if tensor.factor is None else self.value(tensor.factor)
        shape = (tensor.shape[0], *entries[0][0].shape)
        return ExpertTensor(dataflow, shape, entries, factor)

    def _place(self, dataflow: DataFlow, place: EntryPlace) -> EntryPlace:
        sizes, small = dataflow.shape(place.part), self._shapes[place.part]
        axes, strides = _axes(sizes, place), strides_of(small)
        assert axes is not None
        start = sum(int(at) * stride for at, stride in zip(np.unravel_index(place.start, sizes), strides, strict=True))
        part, shape = self.value(place.part), tuple(small[axis] for axis in axes)
        return dataclasses.replace(
            place, part=part, start=start, strides=tuple(strides[axis] for axis in axes), shape=shape
        )
