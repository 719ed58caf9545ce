"""Rows of a layer of experts as ranks exchange them: their bytes, for a layer that is placed on ranks or may be."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from moec.ir import dialect
from moec.ir.dialect import EXPERT_WEIGHTS, ExpertsSpec, RouteSpec
from moec.ir.graphs import is_op
from moec.ir.rule import known_size, weight_axes
from moec.ir.weights.stored import constant

_NARROW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_ID_BYTES = np.dtype(np.int32).itemsize


def computes_in_float32(x: ir.Value | None, operands: Iterable[ir.Value | None]) -> bool:
    """Whether experts on rows of 16 bits can compute in float32 on ranks, so that a result is rounded only after it is
    summed, as without ranks."""
    return (
        x is not None and x.dtype in _NARROW and all(value is None or constant(value) is not None for value in operands)
    )


def exchanged_bytes(node: ir.Node) -> tuple[int, int] | None:
    """Compute the bytes of a row of a ``moec.MoE`` or ``moec.Experts`` node on its way to another rank, with the expert
    ids and weights that travel with it, and those of one result on its way back. None where sizes or types are not
    known."""
    inputs, spec = dialect.inputs_of(node), dialect.spec_of(node, ExpertsSpec)
    x, received = inputs["x"], _received_by(node)
    sent = inputs if received is None else dialect.inputs_of(received)
    inner, width = (known_size(inputs[name], axis) for name, axis in _axes(spec))
    k, size = chosen_experts(node), _itemsize(sent["x"])
    if inner is None or width is None or k is None or size is None:
        return None
    if received is None:
        is_float32 = computes_in_float32(x, (inputs[name] for name in EXPERT_WEIGHTS))
        weights = inputs.get("weights", inputs.get("logits")) if spec.weight_on_input else None
    else:
        is_float32, weights = x is not received.outputs[0], sent["weights"]
    row = inner * size + k * (_ID_BYTES + (_itemsize(weights) or 0))
    return row, width * (np.dtype(np.float32).itemsize if is_float32 else size)


def chosen_experts(node: ir.Node) -> int | None:
    """Find the number of experts per token of a ``moec.MoE`` or ``moec.Experts`` node; None where it is not known."""
    if dialect.is_moec(node, "MoE"):
        return dialect.spec_of(node, RouteSpec).k
    received = _received_by(node)
    return known_size(dialect.inputs_of(node if received is None else received)["experts"], 1)


def _received_by(node: ir.Node) -> ir.Node | None:
    """Find the ``moec.ReceiveRows`` node whose rows, in float32 or as they came, are those of a node."""
    x = dialect.inputs_of(node)["x"]
    source = None if x is None else x.producer()
    if source is not None and is_op(source, "Cast") and source.inputs[0] is not None:
        source = source.inputs[0].producer()
    return source if source is not None and dialect.is_moec(source, "ReceiveRows") else None


def _axes(spec: ExpertsSpec) -> tuple[tuple[str, int], tuple[str, int]]:
    """Weights and axes with the size of a row, and of a result."""
    return ("up", weight_axes(spec.up_transposed)[1]), ("down", weight_axes(spec.down_transposed)[0])


def _itemsize(value: ir.Value | None) -> int | None:
    return None if value is None or value.dtype is None else int(value.dtype.itemsize)
