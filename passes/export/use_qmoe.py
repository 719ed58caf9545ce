"""Layers of experts with quantised weights as onnxruntime's operator QMoE."""

from __future__ import annotations

import dataclasses
import functools
from typing import ClassVar

import onnx_ir as ir

from moec.common.names import node_name
from moec.ir import dialect
from moec.ir.contrib_quantized import INT8_LEVEL, uses_int8_activations
from moec.ir.expert_weights import ExpertWeights, readable_weights
from moec.ir.weights.format import WeightFormat
from moec.passes.export.moe_operator import LAYERS, bias_of, replace_experts, why_not_operator
from moec.passes.export.packed_experts import Packing, packed_layer, packing_of, width_note
from moec.passes.framework.base import Exactness, Report
from moec.passes.graph.unfused import with_route
from moec.passes.graph.writer import Writer


@dataclasses.dataclass(frozen=True)
class UseQMoE:
    """Writes ``moec.Experts`` and ``moec.MoE`` with quantised weights as onnxruntime's ``com.microsoft.QMoE``.

    1. Routing weights, gates, hidden units and the check by onnxruntime are as in ``use-moe``.
    2. Weights of 2, 4 and 8 bits are packed in bytes, with a scale for each row or block of a row; those of 3 bits take
       4, of 5 and 6 bits 8. Zero points stay. Where experts or projections differ in groups, all have the blocks in
       which each can be told.
    3. ``accuracy_level`` 4 lets the kernel round its rows to 8 bits where the node does so in the same groups. Of
       weights of 8 bits in blocks it always does.
    4. Experts that the operator does not have stay, and a note says why: formats with minima, of floats, of 8 bits
       beside fewer, of 8 bits in blocks with rows that are not rounded, groups of fewer than 16 inputs; and what
       ``use-moe`` leaves.

    ::

        (float[T,16] x, float[T,3] logits) => (float[T,16] y)
           <int4[3,32,16] up, float[3,32,1] up_scale, int4[3,16,16] down, float[3,16,1] down_scale> {
           w, e = moec.Route <k = 2, score = "softmax_topk"> (logits)
           u = DequantizeLinear <axis = 2, block_size = 16, output_dtype = 1> (up, up_scale)
           d = DequantizeLinear <axis = 2, block_size = 16, output_dtype = 1> (down, down_scale)
           y = moec.Experts (x, w, e, u, d)
        }
            infer-shapes,use-qmoe ->
        (float[T,16] x, float[T,3] logits) => (float[T,16] y) <float "y.least" = {-10000.0}, float[3,16]
           "y.fc2.scales", float[3,32] "y.fc1.scales", int64[1] "y.numbers" = {3}, uint8[3,16,8] "y.fc2.data",
           uint8[3,32,8] "y.fc1.data"> {
           w, e = moec.Route <k = 2, score = "softmax_topk"> (logits)
           "y.tokens" = Shape <end = 1, start = 0> (e)
           "y.shape" = Concat <axis = 0> ("y.tokens", "y.numbers")
           "y.zeros" = ConstantOfShape <value: tensor = float[1] {0.0}> ("y.shape")
           "y.shares" = ScatterElements <axis = 1, reduction = "add"> ("y.zeros", e, w)
           "y.Log" = Log ("y.shares")
           "y.logits" = Max ("y.Log", "y.least")
           y = com.microsoft.QMoE <activation_alpha = 1.0, activation_beta = 0.0, activation_type = "swiglu",
              expert_weight_bits = 4, k = 2, normalize_routing_weights = 1, swiglu_fusion = 1> (x, "y.logits",
              "y.fc1.data", "y.fc1.scales", "", "y.fc2.data", "y.fc2.scales")
        }
    """

    name: ClassVar[str] = "use-qmoe"
    exactness: ClassVar[Exactness] = "reassociating"

    def apply(self, model: ir.Model, report: Report) -> bool:
        changed = False
        for node in [node for node in model.graph if dialect.has_experts(node)]:
            weights = readable_weights(node)
            if isinstance(weights, str) or not any(form.quantized for form in _formats(weights)):
                continue
            experts = with_route(model.graph, node)
            packing = packing_of(weights)
            reason = packing if isinstance(packing, str) else self._replaced(experts, weights, packing, report)
            notes = [reason]
            if not isinstance(packing, str) and reason is None:
                notes = [width_note(form, packing.bits) for form in sorted(_formats(weights), key=str)]
            for note in filter(None, notes):
                report.note(self.name, node_name(experts), note)
            changed |= reason is None
        return changed

    def _replaced(self, node: ir.Node, weights: ExpertWeights, packing: Packing, report: Report) -> str | None:
        """Replace a ``moec.Experts`` node; or the reason why it stays."""
        if (reason := why_not_operator(node, weights) or _why_not(weights, packing)) is not None:
            return reason
        attributes = {"expert_weight_bits": packing.bits}
        if packing.block:
            attributes["block_size"] = packing.block
        if packing.bits < 8 and _rounds_alike(weights, packing):
            attributes["accuracy_level"] = INT8_LEVEL
        rounds = uses_int8_activations(packing.bits, packing.block, attributes.get("accuracy_level", 0))
        arithmetic = weights.spec.arithmetic
        if (rounds or arithmetic != "float32") and not (rounds and _rounds_alike(weights, packing)):
            how = f"are rounded to 8 bits in groups of {packing.block}" if rounds else "are kept in float32"
            report.note(self.name, node_name(node), f"its rows {how}, not in the arithmetic {arithmetic}")
        warn = functools.partial(report.warn, self.name, node_name(node))
        operands = functools.partial(_operands, weights=weights, packing=packing)
        return replace_experts(node, "QMoE", weights, operands, warn, **attributes)


def _rounds_alike(weights: ExpertWeights, packing: Packing) -> bool:
    """Whether the node rounds its rows as the operator may: to 8 bits in the blocks of the weights."""
    return weights.spec.arithmetic == "int8" and weights.spec.activation_group == packing.block > 0


def _why_not(weights: ExpertWeights, packing: Packing) -> str | None:
    rounds = uses_int8_activations(packing.bits, packing.block, 0)
    if rounds and weights.spec.arithmetic == "float32":
        return "its rows are not rounded, and QMoE rounds those of weights of 8 bits in blocks"
    return None


def _formats(weights: ExpertWeights) -> set[WeightFormat]:
    return {form for stored in weights.operands.values() for form in stored.formats}


def _operands(write: Writer, weights: ExpertWeights, packing: Packing) -> list[ir.Value | None]:
    x = dialect.inputs_of(write.node)["x"]
    dtype = ir.DataType.FLOAT if x is None or x.dtype is None else x.dtype
    fc1, fc2 = (packed_layer(write, weights, packing, layer) for layer in LAYERS)
    biases = [bias_of(write, weights, layer, dtype) for layer in LAYERS]
    operands = [fc1["data"], fc1["scales"], biases[0], fc2["data"], fc2["scales"], biases[1], None, None, None]
    operands += [fc1["zeros"], fc2["zeros"]]
    while operands[-1] is None:
        operands.pop()
    return operands
