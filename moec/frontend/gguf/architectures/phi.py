"""Phi-3 and Phi-3.5-MoE: one matrix for queries, keys and values, and tables of factors for long contexts.

Phi-3 holds gate and up in one matrix; the MoE has norms and products with biases. Windows are ignored, as in llama.cpp.
"""

from __future__ import annotations

import onnx_ir as ir

from moec.frontend.gguf.graph.builder import Builder
from moec.frontend.gguf.parts.attention import Heads, attention
from moec.frontend.gguf.parts.decoder import decoder
from moec.frontend.gguf.parts.embedding import embed
from moec.frontend.gguf.parts.feed_forward import RouterOptions, experts, gated
from moec.frontend.gguf.parts.rope import Rope


def build(build: Builder) -> ir.Value:
    metadata, heads, inner = build.metadata, Heads.of(build), build.metadata.whole("feed_forward_length")
    metadata.whole("attention.sliding_window", 0, least=0)
    rope = Rope(build, heads[0].size, interleaved=False)
    router = RouterOptions.of(build) if metadata.whole("expert_count", 0, least=0) else None

    def attend(x: ir.Value, layer: int) -> ir.Value:
        return attention(build, x, layer, heads[layer], rope)

    def feed_forward(x: ir.Value, layer: int) -> ir.Value:
        return gated(build, x, layer, inner) if router is None else experts(build, x, layer, router, inner)

    return build.head(decoder(build, embed(build), attend, feed_forward))


ARCHITECTURES = {"phi3": build, "phimoe": build}
