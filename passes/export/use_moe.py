"""Layers of experts as onnxruntime's operator MoE."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from moec.common.names import node_name
from moec.ir import dialect
from moec.ir.expert_weights import ExpertWeights, Part, readable_weights
from moec.ir.weights.encode import decode
from moec.ir.weights.format import ELEMENTS
from moec.ir.weights.stacks import ExpertStack
from moec.passes.export.moe_operator import (
    LAYERS,
    Layer,
    Warn,
    bias_of,
    in_turns,
    parts_of,
    replace_experts,
    why_not_operator,
)
from moec.passes.framework.base import Exactness, Report
from moec.passes.graph.unfused import with_route
from moec.passes.graph.writer import Writer

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class UseMoE:
    """Writes ``moec.Experts`` and ``moec.MoE`` as onnxruntime's ``com.microsoft.MoE``.

    1. The operator gets the logarithms of the routing weights as its logits, and divides by their sum; its output is
       multiplied by the sum where that is not 1 (:mod:`moec.passes.export.routed_operator`).
    2. Weights are stored as [E,out,in], gate and up projection in turns. They are rewritten when the file is written,
       one expert at a time. Hidden units that an expert does not have get weights of 0. Weights in float16 or bfloat16
       stay so, with a Cast behind them.
    3. A routing weight on the input of its only expert is multiplied with the rows; experts that return their input
       are a product and a sum.
    4. The installed onnxruntime computes the operator with two of the experts before it replaces the node
       (:mod:`moec.passes.export.operator_check`).
    5. Experts that the kernel on CPUs does not compute stay, and a note says why: other activations, quantised weights,
       outputs with a limit, routing weights that may be negative.

    ::

        (float[T,2] x, float[T,3] logits) => (float[T,2] y) <float[3,8,2] up, float[3,2,4] down> {
           w, e = moec.Route <k = 2, score = "sigmoid"> (logits)
           y = moec.Experts (x, w, e, up, down)
        }
            infer-shapes,use-moe ->
        (float[T,2] x, float[T,3] logits) => (float[T,2] y) <float[3,8,2] "y.fc1", float[3,2,4] "y.fc2",
           int64[1] "y.numbers" = {3}, int64[1] "y.numbers_2" = {1}, float "y.least" = {-10000}> {
           w, e = moec.Route <k = 2, score = "sigmoid"> (logits)
           "y.tokens" = Shape <end = 1, start = 0> (e)
           "y.shape" = Concat <axis = 0> ("y.tokens", "y.numbers")
           "y.zeros" = ConstantOfShape <value: tensor = float[1] {0.0}> ("y.shape")
           "y.shares" = ScatterElements <axis = 1, reduction = "add"> ("y.zeros", e, w)
           "y.total" = ReduceSum <keepdims = 1> (w, "y.numbers_2")
           "y.Log" = Log ("y.shares")
           "y.logits" = Max ("y.Log", "y.least")
           "y.experts" = com.microsoft.MoE <activation_alpha = 1.0, activation_beta = 0.0, activation_type = "swiglu",
              k = 2, normalize_routing_weights = 1, swiglu_fusion = 1> (x, "y.logits", "y.fc1", "", "y.fc2")
           y = Mul ("y.experts", "y.total")
        }
    """

    name: ClassVar[str] = "use-moe"
    exactness: ClassVar[Exactness] = "reassociating"

    def apply(self, model: ir.Model, report: Report) -> bool:
        changed = False
        for node in [node for node in model.graph if dialect.has_experts(node)]:
            experts = with_route(model.graph, node)
            changed |= experts is not node
            reason = _replaced(experts, functools.partial(report.warn, self.name, node_name(experts)))
            if reason is not None:
                report.note(self.name, node_name(experts), reason)
            changed |= reason is None
        return changed


def _replaced(node: ir.Node, warn: Warn) -> str | None:
    """Replace a ``moec.Experts`` node; or the reason why it stays."""
    weights = readable_weights(node)
    if isinstance(weights, str):
        return weights
    reason = why_not_operator(node, weights) or _why_not(weights)
    return reason or replace_experts(node, "MoE", weights, lambda write: _operands(write, weights), warn)


def _why_not(weights: ExpertWeights) -> str | None:
    quantized = {str(form) for stored in weights.operands.values() for form in stored.formats if form.quantized}
    return f"its weights are stored as {', '.join(sorted(quantized))}" if quantized else None


def _operands(write: Writer, weights: ExpertWeights) -> list[ir.Value | None]:
    x = dialect.inputs_of(write.node)["x"]
    dtype = ir.DataType.FLOAT if x is None or x.dtype is None else x.dtype
    operands: list[ir.Value | None] = []
    for layer in LAYERS:
        operands += [_matrix(write, weights, layer, dtype), bias_of(write, weights, layer, dtype)]
    return operands if operands[-1] is not None else operands[:-1]


def _matrix(write: Writer, weights: ExpertWeights, layer: Layer, dtype: ir.DataType) -> ir.Value:
    """The weight [E,out,in] of a layer, in the type that it is stored in; where that differs from expert to expert or
    from gate to up projection, in ``dtype``."""
    parts, most = parts_of(weights, layer), max(weights.sizes)
    names = {form.name for part in parts for form in weights.operand(part).formats}
    stored = ELEMENTS[names.pop()].signed if len(names) == 1 else dtype
    if stored.itemsize > dtype.itemsize:
        stored = dtype

    def rows(part: Part, expert: int) -> Array:
        matrix = decode(weights.own(part, expert), weights.operand(part).run_of(expert).format, 0)
        kept = matrix[:most] if part == "down" else matrix[:, :most]
        return kept.T.astype(stored.numpy(), copy=False)

    def load(expert: int) -> Array:
        return in_turns([rows(part, expert) for part in parts])

    out, length = (weights.width, most) if layer == "fc2" else (most * len(parts), weights.inner)
    stack = ExpertStack(None, stored, (weights.experts, out, length), load)
    weight = write.weight(stack, layer)
    return weight if stored == dtype else write.add("Cast", weight, to=dtype, label=f"{layer}_wide")
