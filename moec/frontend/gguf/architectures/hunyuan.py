"""Hunyuan-A13B: queries and keys are normalised behind the rotary embedding; softmax-routed experts stand next to a
shared one."""

from __future__ import annotations

import onnx_ir as ir

from moec.frontend.gguf.graph.builder import Builder
from moec.frontend.gguf.parts.attention import AttentionForm, Heads, attention
from moec.frontend.gguf.parts.decoder import decoder
from moec.frontend.gguf.parts.embedding import embed
from moec.frontend.gguf.parts.feed_forward import RouterOptions, experts, with_shared
from moec.frontend.gguf.parts.rope import Rope

_FORM = AttentionForm(norm="rotated")


def build(build: Builder) -> ir.Value:
    metadata, heads = build.metadata, Heads.of(build)
    rope = Rope(build, heads[0].size, interleaved=False)
    router = RouterOptions.of(build).scaled(metadata.number("expert_weights_scale", 0.0))
    inner, own = metadata.whole("feed_forward_length"), metadata.whole("expert_feed_forward_length")
    shared = metadata.whole("expert_shared_feed_forward_length", inner)
    metadata.whole("expert_shared_count", 0, least=0)  # the length above is that of all shared experts together

    def attend(x: ir.Value, layer: int) -> ir.Value:
        return attention(build, x, layer, heads[layer], rope, _FORM)

    def feed_forward(x: ir.Value, layer: int) -> ir.Value:
        return with_shared(build, x, experts(build, x, layer, router, own), layer, shared)

    return build.head(decoder(build, embed(build), attend, feed_forward))


ARCHITECTURES = {"hunyuan-moe": build}
