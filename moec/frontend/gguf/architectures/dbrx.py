"""DBRX: layer norms without biases, clamped queries, keys and values, softmax-routed experts."""

from __future__ import annotations

import onnx_ir as ir

from moec.frontend.gguf.graph.builder import Builder
from moec.frontend.gguf.parts.attention import AttentionForm, Heads, attention
from moec.frontend.gguf.parts.decoder import Norms, decoder
from moec.frontend.gguf.parts.embedding import embed
from moec.frontend.gguf.parts.feed_forward import RouterOptions, experts
from moec.frontend.gguf.parts.rope import Rope


def build(build: Builder) -> ir.Value:
    heads, inner, router = Heads.of(build), build.metadata.whole("feed_forward_length"), RouterOptions.of(build)
    rope = Rope(build, heads[0].size, interleaved=False)
    form = AttentionForm(clamp=build.metadata.number("attention.clamp_kqv"))

    def attend(x: ir.Value, layer: int) -> ir.Value:
        return attention(build, x, layer, heads[layer], rope, form)

    def feed_forward(x: ir.Value, layer: int) -> ir.Value:
        return experts(build, x, layer, router, inner)

    norms = Norms(feed_forward="attn_output_norm", layer=True)
    return build.head(decoder(build, embed(build), attend, feed_forward, norms))


ARCHITECTURES = {"dbrx": build}
