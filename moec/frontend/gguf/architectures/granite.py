"""Granite and Granite MoE: Llama with factors for embeddings, scores, additions to the residual stream and logits.
Experts may stand next to a shared one."""

from __future__ import annotations

import onnx_ir as ir

from moec.frontend.gguf.graph.builder import Builder
from moec.frontend.gguf.parts.attention import AttentionForm, Heads, attention
from moec.frontend.gguf.parts.decoder import decoder
from moec.frontend.gguf.parts.embedding import embed
from moec.frontend.gguf.parts.feed_forward import RouterOptions, experts, gated, with_shared
from moec.frontend.gguf.parts.rope import Rope


def build(build: Builder) -> ir.Value:
    metadata, heads = build.metadata, Heads.of(build)
    rope = Rope(build, heads[0].size, interleaved=True)
    is_rotated = metadata.flag("rope.scaling.finetuned", True) or metadata.architecture != "granite"
    router = RouterOptions.of(build) if metadata.whole("expert_count", 0, least=0) else None
    inner, shared = (
        metadata.whole("feed_forward_length"),
        metadata.whole("expert_shared_feed_forward_length", 0, least=0),
    )
    form = AttentionForm(scale=metadata.number("attention.scale", 0.0) or None)

    def attend(x: ir.Value, layer: int) -> ir.Value:
        return attention(build, x, layer, heads[layer], rope if is_rotated else None, form)

    def feed_forward(x: ir.Value, layer: int) -> ir.Value:
        if router is None:
            return gated(build, x, layer, inner)
        return with_shared(build, x, experts(build, x, layer, router, inner), layer, shared)

    x = embed(build, metadata.number("embedding_scale", 0.0) or 1.0)
    x = decoder(build, x, attend, feed_forward, residual=metadata.number("residual_scale", 0.0) or 1.0)
    return build.head(x, scale=1 / (metadata.number("logit_scale") or 1.0))


ARCHITECTURES = {"granite": build, "granitemoe": build}
