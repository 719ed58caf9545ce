"""MiniMax-M2: norms over all heads of queries and of keys, and experts in every layer, selected by sigmoids with a
correction bias."""

from __future__ import annotations

import onnx_ir as ir

from moec.frontend.gguf.graph.builder import Builder
from moec.frontend.gguf.parts.attention import AttentionForm, Heads, attention
from moec.frontend.gguf.parts.decoder import decoder
from moec.frontend.gguf.parts.embedding import embed
from moec.frontend.gguf.parts.feed_forward import RouterOptions, experts, score_of
from moec.frontend.gguf.parts.rope import Rope

_FORM = AttentionForm(norm="all")


def build(build: Builder) -> ir.Value:
    metadata, heads = build.metadata, Heads.of(build)
    rope = Rope(build, heads[0].size, interleaved=False)
    router = RouterOptions.of(build, score_of(build), correction="needed")
    router = router.scaled(metadata.number("expert_weights_scale", 0.0))
    inner = metadata.whole("expert_feed_forward_length", metadata.whole("feed_forward_length"))

    def attend(x: ir.Value, layer: int) -> ir.Value:
        return attention(build, x, layer, heads[layer], rope, _FORM)

    return build.head(decoder(build, embed(build), attend, lambda x, layer: experts(build, x, layer, router, inner)))


ARCHITECTURES = {"minimax-m2": build}
