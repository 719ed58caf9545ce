"""Isomorphic blocks, those of equal structure: the layers of one model differ only in their weights.

A block, once understood, is known by its function of its weights. For an isomorphic block the same proposal is tried
first, with the weights in the same places, and one trial that reaches every expert's weights decides.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable

import numpy as np
import onnx_ir as ir

from moec.passes.raising.block import Block
from moec.passes.raising.check import Proposal
from moec.passes.raising.dataflow import DataFlow
from moec.passes.raising.row_proposal import RowProposal


@dataclasses.dataclass(frozen=True)
class Structure:
    """Structure of a block. Blocks of equal ``key`` correspond value by value, in the order of ``values``.

    ``key`` covers operators, attributes, how values are connected, x, logits and y, shapes and types of constants, and
    the numbers of those that are not weights: integers, and floats of one element.
    """

    key: Hashable
    values: tuple[ir.Value, ...]


def structure_of(block: Block) -> Structure | None:
    """The structure of a block; None for one with control flow."""
    numbers: dict[ir.Value, int] = {}

    def number(value: ir.Value | None) -> int:
        return -1 if value is None else numbers.setdefault(value, len(numbers))

    ends = [number(value) for value in (block.x, block.logits, block.start)]
    nodes = []
    for node in block.nodes:
        attributes = tuple(_attribute(node.attributes[name]) for name in sorted(node.attributes))
        if None in attributes:
            return None
        places = [tuple(map(number, values)) for values in (node.inputs, node.outputs)]
        nodes.append((node.domain, node.op_type, attributes, *places))
    ends.append(number(block.y))
    symbols: dict[str, int] = {}
    described = tuple(_describe(block, value, symbols) for value in numbers)
    return Structure((block.E, block.d, block.weighing, tuple(ends), tuple(nodes), described), tuple(numbers))


def transfer(
    proposal: Proposal | RowProposal, source: Structure, target: Structure, dataflow: DataFlow
) -> Proposal | RowProposal | None:
    """The proposal for the block of ``target``.

    None if it uses a value that is no part of the structure, or if a constant that it does not use differs: a bias that
    is zero in one layer need not be in the next.
    """
    counterparts = dict(zip(source.values, target.values, strict=True))
    routing, used = proposal.routing, proposal.used
    if not used <= counterparts.keys():
        return None
    unused = ((mine, other) for mine, other in counterparts.items() if mine not in used and dataflow.constant(other))
    if not all(mine is other or np.array_equal(dataflow.array(mine), dataflow.array(other)) for mine, other in unused):
        return None
    bias = None if routing.correction_bias is None else counterparts[routing.correction_bias]
    places = None if routing.places is None else counterparts[routing.places]
    return proposal.moved(counterparts, dataclasses.replace(routing, correction_bias=bias, places=places), dataflow)


def _attribute(attribute: ir.Attr) -> tuple[Hashable, ...] | None:
    if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
        return None
    if attribute.type == ir.AttributeType.TENSOR:
        tensor = attribute.as_tensor()
        return attribute.name, str(tensor.dtype), tuple(tensor.shape.numpy()), tensor.tobytes()
    return attribute.name, repr(attribute.value)


def _describe(block: Block, value: ir.Value, symbols: dict[str, int]) -> Hashable:
    """Type and shape of a value from outside, and its numbers if they are part of the function."""
    dataflow = block.dataflow
    if dataflow.constant(value):
        shape = dataflow.shape(value)
        is_told = value.dtype is None or value.dtype.is_integer() or shape in ((), (1,))
        array = dataflow.array(value) if is_told else None
        is_part = array is not None and (array.dtype.kind in "iub" or array.size == 1)
        return str(value.dtype), shape, array.tobytes() if array is not None and is_part else None
    if value not in (block.x, block.logits, *block.shape_sources) or value.shape is None:
        return None
    sizes = [d if isinstance(d, int) else f"symbol {symbols.setdefault(str(d), len(symbols))}" for d in value.shape]
    return str(value.dtype), tuple(sizes)
