"""Qwen1.5-MoE and Qwen2-MoE: softmax-routed experts next to a shared one, which a sigmoid weighs."""

from __future__ import annotations

import onnx_ir as ir

from moec.frontend.gguf.graph.builder import Builder
from moec.frontend.gguf.parts.attention import Heads, attention
from moec.frontend.gguf.parts.decoder import decoder
from moec.frontend.gguf.parts.embedding import embed
from moec.frontend.gguf.parts.feed_forward import RouterOptions, experts, with_shared
from moec.frontend.gguf.parts.rope import Rope


def build(build: Builder) -> ir.Value:
    heads, router = Heads.of(build), RouterOptions.of(build, normalize=False)
    rope = Rope(build, heads[0].size, interleaved=False)
    inner = build.metadata.whole("feed_forward_length")
    own = build.metadata.whole("expert_feed_forward_length", inner // router.spec.k)
    shared = build.metadata.whole("expert_shared_feed_forward_length", inner)

    def attend(x: ir.Value, layer: int) -> ir.Value:
        return attention(build, x, layer, heads[layer], rope)

    def feed_forward(x: ir.Value, layer: int) -> ir.Value:
        routed = experts(build, x, layer, router, own)
        return with_shared(build, x, routed, layer, shared, is_gated=True)

    return build.head(decoder(build, embed(build), attend, feed_forward))


ARCHITECTURES = {"qwen2moe": build}
