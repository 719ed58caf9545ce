"""Experts whose weights are stored in fewer bits keep their format: constants of single experts are joined in it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from moec.ir.weights.encode import Table
from moec.ir.weights.levels import levels_node
from moec.ir.weights.stacks import ExpertStack
from moec.ir.weights.stored import WeightRun, decoding_node
from moec.passes.raising.dataflow import rank_of
from moec.passes.raising.weights import ExpertTensor, in_turn


def stored_runs(tensor: ExpertTensor) -> list[WeightRun] | None:
    """The stored matrix of each expert; None unless all are stored alike, in fewer bits, and used whole."""
    stored = [tensor.dataflow.stored(part) for part in tensor.parts]
    whole = tuple(entry for part in tensor.parts for entry in in_turn(part, (1, *tensor.shape[1:])))
    runs = [run for run in stored if run is not None and rank_of(run) == 2 and run.shape == tensor.shape[1:]]
    if tensor.factor is not None or len(runs) != tensor.shape[0] or tensor.entries != whole:
        return None
    kinds = {(run.format, run.axis, *_scale_types(run)) for run in runs}
    form = runs[0].format
    return runs if len(kinds) == 1 and not (form.minima or form.super_group) else None


def _scale_types(run: WeightRun) -> list[ir.DataType | None]:
    levels = run.levels("scale")
    scales = [run.scale] if levels is None else [levels.codes, levels.factors]
    return [None if value is None else value.dtype for value in scales]


def stacked(runs: list[WeightRun], name: str, dtype: ir.DataType) -> tuple[list[ir.Node], list[ir.Value]]:
    """The nodes that decode all experts, in order, and their constants. The caller adds both to the graph."""
    first = runs[0]
    axis, levels = -1 if first.axis is None else first.axis - 2, first.levels("scale")
    operands: dict[Table, ir.Value | None] = {"data": first.data, "zero_point": first.zero_point}
    if levels is None:
        operands["scale"] = first.scale
    else:
        operands |= {"scale_code": levels.codes, "scale_factor": levels.factors}
    stacks = {table: _stack(runs, table, like, name) for table, like in operands.items() if like is not None}
    scale, nodes = stacks.get("scale"), []
    if levels is not None:
        nodes.append(levels_node(stacks["scale_code"], stacks["scale_factor"], axis, levels.span))
        scale = nodes[0].outputs[0]
    nodes.append(decoding_node(first.format, stacks["data"], scale, stacks.get("zero_point"), axis, dtype))
    return nodes, list(stacks.values())


def _stack(runs: list[WeightRun], table: Table, like: ir.Value, name: str) -> ir.Value:
    tensor = like.const_value
    assert tensor is not None
    shape = (len(runs), *(int(size) for size in tensor.shape.numpy()))

    def load(expert: int) -> np.ndarray:
        array = runs[expert].encoded(0).read(table)
        assert array is not None
        return array

    stack = ExpertStack(f"{name}.{table}", tensor.dtype, shape, load)
    return ir.Value(name=stack.name, shape=ir.Shape(shape), type=ir.TensorType(tensor.dtype), const_value=stack)
