"""Converters of rows on several ranks (:class:`~moec.ir.dialect.RanksSpec`): calls of the runtime, which sends them.

``ReceiveRows`` takes the tensors that were sent as arguments, so that their memory is not used again while they travel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir
from tvm import relax, te, tirx

from moec.ir.dialect import RanksSpec, spec_of
from moec.runtime.rank_calls import (
    COUNT_ROWS,
    RECEIVED_EXPERTS,
    RECEIVED_ROWS,
    RECEIVED_WEIGHTS,
    RETURN_ROWS,
    SEND_ROWS,
)
from moec.targets.tvm.lowering.context import HeavyConverter, LoweringContext
from moec.targets.tvm.lowering.node_lowering import NodeLowering


def converters(machine: Any) -> Mapping[str, HeavyConverter]:
    """Converters of the three operators, by name."""

    def send(lowering: LoweringContext, node: ir.Node) -> relax.Expr:
        arguments = [_layer(node), *_pairs(NodeLowering(lowering, node, machine))]
        return lowering.call_runtime(SEND_ROWS, arguments, relax.TensorType((1,), "int32"), "sent")

    def receive(lowering: LoweringContext, node: ir.Node) -> Sequence[relax.Expr]:
        return _receive(NodeLowering(lowering, node, machine))

    def give_back(lowering: LoweringContext, node: ir.Node) -> Sequence[relax.Expr]:
        return _return(NodeLowering(lowering, node, machine))

    return {"moec.SendRows": send, "moec.ReceiveRows": receive, "moec.ReturnRows": give_back}


def _layer(node: ir.Node) -> int:
    return spec_of(node, RanksSpec).layer


def _pairs(node: NodeLowering) -> list[relax.Expr]:
    """The rows of tokens, the experts of their pairs and, where they travel, the weights."""
    pairs = [node.tensor("x"), node.cast(node.tensor("experts"), "int32")]
    return pairs if node.inputs["weights"] is None else [*pairs, node.tensor("weights")]


def _receive(node: NodeLowering) -> Sequence[relax.Expr]:
    lowering, layer = node.lowering, _layer(node.node)
    x, experts, *weights = _pairs(node)
    arguments = [layer, node.tensor("sent"), x, experts, *weights]
    count = lowering.call_runtime(COUNT_ROWS, arguments, relax.TensorType((1,), "int64"), "received")
    pairs = lowering.size_from(count, "pairs")
    dtype = str(weights[0].ty.dtype) if weights else "float32"

    def call(function: str, width: Any, dtype: str, name: str) -> relax.Var:
        return lowering.call_runtime(function, [layer, count], relax.TensorType((pairs, width), dtype), name)

    rows = call(RECEIVED_ROWS, x.ty.shape[1], str(x.ty.dtype), "received_rows")
    owners = call(RECEIVED_EXPERTS, 1, "int32", "received_experts")
    if not weights:
        return rows, owners, lowering.emit(relax.op.ones((pairs, 1), dtype))
    return rows, owners, call(RECEIVED_WEIGHTS, 1, dtype, "received_weights")


def _return(node: NodeLowering) -> Sequence[relax.Expr]:
    lowering, results = node.lowering, node.tensor("results")
    experts = node.cast(node.tensor("experts"), "int32")
    tokens, slots = experts.ty.shape
    output = relax.TensorType((tokens * slots, results.ty.shape[1]), str(results.ty.dtype))
    rows = lowering.call_runtime(RETURN_ROWS, [_layer(node.node), results], output, "returned_rows")

    def positions(experts: te.Tensor) -> te.Tensor:
        def position(token: tirx.Expr, slot: tirx.Expr) -> tirx.Expr:
            row = (token * slots + slot).astype("int32")
            return tirx.Select(experts(token, slot) < 0, tirx.const(-1, "int32"), row)

        return te.compute((tokens, slots), position, name="positions")

    return rows, lowering.compute(positions, [experts], "positions")[0]
