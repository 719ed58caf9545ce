"""Some experts of a node's operand, or some positions of each, in whatever formats the operand is stored."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from moec.ir import dialect
from moec.ir.graphs import add_constant
from moec.ir.minima import less_minima
from moec.ir.weight_operands import weight_inputs
from moec.ir.weights.levels import product_of_levels
from moec.ir.weights.stacks import ExpertStack, expert_data
from moec.ir.weights.stored import StoredWeight, WeightRun, decoding_node
from moec.passes.graph.edits import fresh_name, remove_unused

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class ExpertSelection:
    """The experts of an operand [E,...] that stay, in this order; an expert may be named several times.

    ``positions[i]``: the positions along ``axis`` that stay of the i-th expert, equally many for each; empty if all do.
    """

    experts: Sequence[int]
    axis: int = 1
    positions: Sequence[Array] = ()


def select(graph: ir.Graph, node: ir.Node, name: str, selection: ExpertSelection) -> None:
    """Let a moec node have a selection of its operand ``name``, which is a constant [E,...] or a stored weight.

    New constants make themselves when they are read, one expert at a time. Each run of experts keeps its format.
    """
    value = dialect.inputs_of(node)[name]
    if value is None:
        return
    if name in weight_inputs(node):
        new = _of_weight(graph, node, value, selection)
    else:
        new = _of_constant(graph, value, 0, selection)
    node.replace_input_with(dialect.INPUTS[node.op_type].index(name), new)
    remove_unused(graph, value)


def _of_weight(graph: ir.Graph, node: ir.Node, value: ir.Value, selection: ExpertSelection) -> ir.Value:
    parts = [_of_run(graph, node, value, run, own) for run, own in _by_run(StoredWeight.of(value), selection)]
    if len(parts) == 1:
        return parts[0]
    joined = ir.node("Concat", parts, {"axis": 0})
    assert parts[0].shape is not None
    joined.outputs[0].shape = ir.Shape((len(selection.experts), *parts[0].shape[1:]))
    return _inserted(graph, node, joined, value)


def _by_run(weight: StoredWeight, selection: ExpertSelection) -> Iterator[tuple[WeightRun, ExpertSelection]]:
    """Consecutive experts of the selection that are stored in one run."""
    places = range(len(selection.experts))
    for run, group in itertools.groupby(places, lambda place: weight.run_of(selection.experts[place])):
        own = list(group)
        positions = [selection.positions[place] for place in own] if selection.positions else ()
        yield run, dataclasses.replace(selection, experts=[selection.experts[i] for i in own], positions=positions)


def _of_run(graph: ir.Graph, node: ir.Node, value: ir.Value, run: WeightRun, selection: ExpertSelection) -> ir.Value:
    def of(part: ir.Value) -> ir.Value:
        return _of_constant(graph, part, run.first, selection)

    def of_table(table: Literal["scale", "minimum"]) -> ir.Value | None:
        part, levels = getattr(run, table), run.levels(table)
        if levels is None:
            return None if part is None else of(part)
        return product_of_levels(graph, node, of(levels.codes), of(levels.factors), levels.axis, levels.span)

    data, scale, minimum = of(run.data), of_table("scale"), of_table("minimum")
    zero_point = None if run.zero_point is None else of(run.zero_point)
    assert value.dtype is not None
    if not run.format.quantized and data.dtype == value.dtype:
        return data
    inputs_axis = 0 if run.axis is None else 1 + run.axis
    decoding = decoding_node(run.format, data, scale, zero_point, inputs_axis, value.dtype)
    decoded = _inserted(graph, node, decoding, value)
    if minimum is None:
        return decoded
    return less_minima(graph, node, decoded, minimum, inputs_axis, run.format.group)


def _inserted(graph: ir.Graph, node: ir.Node, new: ir.Node, replaced: ir.Value) -> ir.Value:
    """The output of a new node that makes a selection of a value's experts."""
    output = new.outputs[0]
    output.name, output.type = _name(graph, replaced), replaced.type
    graph.insert_before(node, new)
    return output


def _of_constant(graph: ir.Graph, value: ir.Value, first: int, selection: ExpertSelection) -> ir.Value:
    """The selection of a constant [E',...] that begins with the expert ``first``. One element of the axis that serves
    all positions, as the scale of an output does for its inputs, stays."""
    tensor = value.const_value
    assert tensor is not None
    shape = [len(selection.experts), *tensor.shape.numpy()[1:]]
    positions = selection.positions if shape[selection.axis] > 1 else ()
    if positions:
        shape[selection.axis] = len(positions[0])

    def load(place: int) -> Array:
        data = expert_data(value, selection.experts[place] - first)
        return np.take(data, positions[place], selection.axis - 1) if positions else data

    name = _name(graph, value)
    return add_constant(graph, ExpertStack(name, tensor.dtype, shape, load), name)


def _name(graph: ir.Graph, value: ir.Value) -> str:
    return fresh_name(graph, f"{str(value.name).removesuffix('_used')}_used")
