"""Experts whose weights are stored in fewer bits keep their format: constants of single experts are joined in it."""

from __future__ import annotations

import onnx_ir as ir

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
    kinds = {(run.format, run.axis, run.scale.dtype if run.scale is not None else None) for run in runs}
    form = runs[0].format
    return runs if len(kinds) == 1 and not (form.minima or form.super_group) else None


def stacked(runs: list[WeightRun], name: str, dtype: ir.DataType) -> tuple[ir.Node, list[ir.Value]]:
    """The node that decodes all experts, and its constants, which the caller adds to the graph."""
    first = runs[0]
    operands = {"data": first.data, "scale": first.scale, "zero_point": first.zero_point}
    stacks = {role: _stack(runs, role, like, name) for role, like in operands.items() if like is not None}
    axis = -1 if first.axis is None else first.axis - 2
    decoded = (stacks["data"], stacks.get("scale"), stacks.get("zero_point"), axis, dtype)
    return decoding_node(first.format, *decoded), list(stacks.values())


def _stack(runs: list[WeightRun], role: str, like: ir.Value, name: str) -> ir.Value:
    tensor = like.const_value
    assert tensor is not None
    shape = (len(runs), *(int(size) for size in tensor.shape.numpy()))
    stack = ExpertStack(f"{name}.{role}", tensor.dtype, shape, lambda expert: getattr(runs[expert].encoded(0), role))
    return ir.Value(name=stack.name, shape=ir.Shape(shape), type=ir.TensorType(tensor.dtype), const_value=stack)
