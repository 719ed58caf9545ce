"""Operators of onnxruntime become standard ones and those of moec."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import ClassVar

import onnx_ir as ir

from moec.common.errors import MoecError
from moec.common.names import node_name, operator_name
from moec.ir import local_bodies
from moec.ir.dialect import DOMAIN, REFUSAL_KEY
from moec.ir.graphs import lift_constants
from moec.passes.contrib import arithmetic, attention, convolution, experts, quantized, recurrence
from moec.passes.framework.base import Exactness, Report
from moec.passes.graph.edits import replace_node, value_names
from moec.passes.graph.writer import NotDecomposableError, Writer

DECOMPOSITIONS: dict[str, Callable[[Writer], list[ir.Value | None]]] = {
    "BiasGelu": arithmetic.bias_gelu,
    "CausalConvWithState": convolution.causal_conv_with_state,
    "FastGelu": arithmetic.fast_gelu,
    "FusedGemm": arithmetic.fused_gemm,
    "FusedMatMul": arithmetic.fused_matmul,
    "GatherBlockQuantized": quantized.gather_block_quantized,
    "Gelu": arithmetic.gelu,
    "GroupQueryAttention": attention.group_query_attention,
    "LinearAttention": recurrence.linear_attention,
    "MatMulNBits": quantized.matmul_n_bits,
    "MoE": experts.moe,
    "QMoE": experts.qmoe,
    "QuickGelu": arithmetic.quick_gelu,
    "RotaryEmbedding": attention.rotary_embedding,
    "SkipLayerNormalization": arithmetic.skip_layer_normalization,
    "SkipSimplifiedLayerNormalization": arithmetic.skip_simplified_layer_normalization,
}

_MOE = "activation_alpha activation_beta activation_type k normalize_routing_weights swiglu_fusion swiglu_limit"
_MOE += " swiglu_limit_after_activation use_sparse_mixer"
_BITS = "expert_weight_bits fc1_expert_weight_bits fc2_expert_weight_bits fc3_expert_weight_bits"
_STATE = "state_channels_last state_length state_update_capacity state_window"
_NORMS = "k_norm_epsilon q_norm_epsilon qk_norm_epsilon"
ATTRIBUTES: dict[str, str] = {
    "CausalConvWithState": f"activation channels_last dilation input_channel_offset input_channels ndim {_STATE}",
    "FusedGemm": "activation activation_alpha activation_beta activation_gamma alpha beta transA transB",
    "FusedMatMul": "alpha transA transB transBatchA transBatchB",
    "GatherBlockQuantized": "bits block_size gather_axis quantize_axis",
    "GroupQueryAttention": "causal do_rotary k_quant_type kv_cache_bit_width kv_num_heads local_window_size num_heads "
    f"{_NORMS} qk_output rotary_interleaved scale sliding_window_cache smooth_softmax softcap v_quant_type",
    "LinearAttention": "chunk_size kv_num_heads q_num_heads scale state_window update_rule",
    "MatMulNBits": "K N accuracy_level bits block_size weight_prepacked",
    "MoE": _MOE,
    "QMoE": f"{_MOE} {_BITS} accuracy_level block_size quant_type weights_prepacked",
    "QuickGelu": "alpha",
    "RotaryEmbedding": "interleaved is_packed_batching num_heads rotary_embedding_dim scale",
    "SkipLayerNormalization": "epsilon",
    "SkipSimplifiedLayerNormalization": "epsilon",
}
"""The attributes that decompositions read, or whose meaning hangs on an input or attribute that they refuse. Operators
that are not named have none."""
_FLOATS = f"alpha beta activation_alpha activation_beta activation_gamma epsilon scale softcap swiglu_limit {_NORMS}"
_TEXTS = "activation activation_type k_quant_type quant_type update_rule v_quant_type"
ATTRIBUTE_TYPES: dict[str, ir.AttributeType] = {
    **dict.fromkeys(_FLOATS.split(), ir.AttributeType.FLOAT),
    **dict.fromkeys(_TEXTS.split(), ir.AttributeType.STRING),
}
"""The types of attributes that are no integers."""


@dataclasses.dataclass(frozen=True)
class DecomposeContrib:
    """Spells the operators of onnxruntime's domain ``com.microsoft`` in ONNX and moec, for the passes that follow.

    1. Fused activations, normalisations and products (QuickGelu, SkipSimplifiedLayerNormalization, FusedMatMul, ...)
       become the operators that they are fused from.
    2. Packed weights (MatMulNBits, QMoE) and tables (GatherBlockQuantized) become ``DequantizeLinear`` of 4-bit or
       8-bit constants, unpacked when they are read: signed and symmetric without zero points, unsigned with them. Of
       2 bits become of 4. Zero points that are floats make weights of float32.
    3. MatMulNBits becomes ``moec.Linear``. With ``accuracy_level`` 4, which allows activations of 8 bits, its
       arithmetic is int8 in groups of the block size; so is that of experts of 8 bits in blocks, as onnxruntime
       computes them.
    4. MoE and QMoE become ``moec.Route`` and ``moec.Experts``.
    5. GroupQueryAttention becomes RotaryEmbedding, TensorScatter into the caches and Attention; CausalConvWithState
       becomes Conv over the state and the input, LinearAttention that of ONNX.
    6. A node that asks for more than this, or has an attribute that is not known here, becomes the nodes of the body
       that the model brings along for it; without one it stays. Both are reported.

    ::

        (float[T,64] x) => (float[T,8] y) <uint8[8,2,16] bytes, float[8,2] scales> {
           y = com.microsoft.MatMulNBits <K = 64, N = 8, bits = 4, block_size = 32> (x, bytes, scales)
        }
            decompose-contrib,remove-dead-nodes ->
        (float[T,64] x) => (float[T,8] y) <float[8,2] "y.float", int4[8,64] "y.int4"> {
           "y.weight" = DequantizeLinear <axis = 1, block_size = 32, output_dtype = 1> ("y.int4", "y.float")
           y = moec.Linear (x, "y.weight")
        }
    """

    name: ClassVar[str] = "decompose-contrib"
    exactness: ClassVar[Exactness] = "reassociating"

    keep: str = ""

    def apply(self, model: ir.Model, report: Report) -> bool:
        unknown = set(filter(None, self.keep.split("+"))) - DECOMPOSITIONS.keys()
        if unknown:
            raise MoecError(f"{self.name}: keep names {min(unknown)!r}; expected some of {', '.join(DECOMPOSITIONS)}")
        left = {node for node in model.graph if _is_contrib(node) and node.op_type in self.keep.split("+")}
        changed = False
        while True:
            taken = value_names(model.graph)
            pending = [node for node in model.graph if _is_contrib(node) and node not in left]
            reasons = {node: self._spell(Writer(node, taken), report) for node in pending}
            refused = {node: reason for node, reason in reasons.items() if reason is not None}
            changed |= len(refused) < len(pending)
            bodies = {node for node in refused if node.op_identifier() in local_bodies.of(model)}
            for node, reason in refused.items():
                end = "becomes the nodes of its body in the file" if node in bodies else "stays as it is"
                report.warn(self.name, node_name(node), f"{operator_name(node)} {end}: {reason}")
                node.metadata_props[REFUSAL_KEY] = str(reason)
            if not bodies:
                return changed
            left |= refused.keys() - bodies
            _inline(model, bodies)
            changed = True

    def _spell(self, write: Writer, report: Report) -> NotDecomposableError | None:
        """Replace a node by other operators; return the reason if they cannot express it."""
        node = write.node
        try:
            _refuse_unknown_attributes(node)
            values = DECOMPOSITIONS[node.op_type](write)
        except NotDecomposableError as reason:
            return reason
        for remark in write.remarks:
            report.note(self.name, node_name(node), f"{operator_name(node)}: {remark}")
        replace_node(node, values)
        return None


def _is_contrib(node: ir.Node) -> bool:
    return node.domain == "com.microsoft" and node.op_type in DECOMPOSITIONS


def _inline(model: ir.Model, calls: Collection[ir.Node]) -> None:
    """Put the bodies that the model brings along in the place of ``calls``, all that are left of these operators."""
    from onnx_ir.passes.common import InlinePass

    from moec.ir import shapes

    for identifier in {node.op_identifier() for node in calls}:
        body = local_bodies.of(model)[identifier].clone()
        model.functions[body.identifier()] = body
    InlinePass(criteria=lambda function: function.domain != DOMAIN)(model)
    lift_constants(model)
    shapes.infer(model)


def _refuse_unknown_attributes(node: ir.Node) -> None:
    """Raises NotDecomposableError for an attribute whose meaning nobody here has seen, or of another type."""
    allowed = ATTRIBUTES.get(node.op_type, "").split()
    for name, attribute in node.attributes.items():
        if name not in allowed:
            raise NotDecomposableError(f"attribute {name} is not known; expected {', '.join(allowed) or 'none'}")
        expected_type = ATTRIBUTE_TYPES.get(name, ir.AttributeType.INT)
        if attribute.type != expected_type:
            actual, expected = (kind.name.lower() for kind in (attribute.type, expected_type))
            raise NotDecomposableError(f"attribute {name} is of type {actual}; expected {expected}")
