"""GLM-4.5, dots.llm1 and ERNIE 4.5 (MoE): leading dense layers, then experts next to a shared one, selected by scores
with a correction bias."""

from __future__ import annotations

import functools

import onnx_ir as ir

from moec.frontend.gguf.graph.builder import Builder
from moec.frontend.gguf.parts.attention import AttentionForm, Heads, QueryNorm, attention
from moec.frontend.gguf.parts.decoder import Norms, decoder
from moec.frontend.gguf.parts.embedding import embed
from moec.frontend.gguf.parts.feed_forward import RouterOptions, experts, gated, score_of, with_shared
from moec.frontend.gguf.parts.mtp import text_or_mtp
from moec.frontend.gguf.parts.rope import Rope

_SIGMOID = 2


def build(
    build: Builder, norm: QueryNorm = "head", feed_forward_norm: str = "ffn_norm", gating: int | None = None
) -> ir.Value:
    """Build GLM-4.5 or dots.llm1. ``gating``: the score function where metadata names none. Only some sizes of GLM-4.5
    have norms of queries and keys."""
    metadata, heads, inner = build.metadata, Heads.of(build), build.metadata.whole("feed_forward_length")
    form = AttentionForm(norm=norm if build.has("blk.0.attn_q_norm.weight") else "")
    normalize, scale = metadata.flag("expert_weights_norm", False), metadata.number("expert_weights_scale", 0.0)
    router = RouterOptions.of(build, score_of(build, gating), normalize, correction="allowed").scaled(scale)
    own, shared = metadata.whole("expert_feed_forward_length"), metadata.whole("expert_shared_count", 0, least=0)
    dense = metadata.whole("leading_dense_block_count", 0, least=0)
    rope = Rope(build, heads[0].size, interleaved=False)

    def attend(x: ir.Value, layer: int) -> ir.Value:
        return attention(build, x, layer, heads[layer], rope, form)

    def feed_forward(x: ir.Value, layer: int) -> ir.Value:
        if layer < dense:
            return gated(build, x, layer, inner)
        return with_shared(build, x, experts(build, x, layer, router, own), layer, own * shared)

    return text_or_mtp(build, attend, feed_forward, Norms(feed_forward=feed_forward_norm))


def build_ernie(build: Builder) -> ir.Value:
    """Build ERNIE 4.5: softmax scores with a correction bias, and experts in every ``interleave_moe_layer_step``-th
    layer."""
    metadata, heads, inner = build.metadata, Heads.of(build), build.metadata.whole("feed_forward_length")
    is_moe = metadata.architecture == "ernie4_5-moe"
    router = RouterOptions.of(build, correction="allowed") if is_moe else None
    own = metadata.whole("expert_feed_forward_length") if is_moe else 0
    shared = metadata.whole("expert_shared_feed_forward_length", 0, least=0)
    metadata.whole("expert_shared_count", 0, least=0)  # the length above is that of all shared experts together
    dense, step = (
        metadata.whole("leading_dense_block_count", 0, least=0),
        metadata.whole("interleave_moe_layer_step", 1),
    )
    rope = Rope(build, heads[0].size, interleaved=True)

    def attend(x: ir.Value, layer: int) -> ir.Value:
        return attention(build, x, layer, heads[layer], rope)

    def feed_forward(x: ir.Value, layer: int) -> ir.Value:
        if router is None or layer < dense or (layer + 1) % step:
            return gated(build, x, layer, inner)
        return with_shared(build, x, experts(build, x, layer, router, own), layer, shared)

    return build.head(decoder(build, embed(build), attend, feed_forward))


ARCHITECTURES = {
    "glm4moe": functools.partial(build, feed_forward_norm="post_attention_norm", gating=_SIGMOID),
    "dots1": build,
    "ernie4_5": build_ernie,
    "ernie4_5-moe": build_ernie,
}
