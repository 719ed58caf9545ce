"""gpt-oss: a sink for each head, a window in every other layer, biases throughout, experts with a clamped SwiGLU."""

from __future__ import annotations

import onnx_ir as ir

from moec.frontend.gguf.graph.builder import Builder
from moec.frontend.gguf.parts.attention import AttentionForm, Heads, attention
from moec.frontend.gguf.parts.decoder import Norms, decoder
from moec.frontend.gguf.parts.embedding import embed
from moec.frontend.gguf.parts.feed_forward import RouterOptions, experts
from moec.frontend.gguf.parts.rope import Rope
from moec.frontend.gguf.parts.windows import windows_of
from moec.ir.dialect import ExpertsSpec

_EXPERTS = ExpertsSpec("silu", alpha=1.702, limit=7.0, up_offset=1.0)


def build(build: Builder) -> ir.Value:
    heads, windows = Heads.of(build), windows_of(build, 2)
    rope, router = (
        Rope(build, heads[0].size, interleaved=False),
        RouterOptions.of(build, "softmax_topk", normalize=False),
    )
    build.metadata.whole("feed_forward_length", 0, least=0)  # converters write it, but there are no dense layers
    inner = build.metadata.whole("expert_feed_forward_length")

    def attend(x: ir.Value, layer: int) -> ir.Value:
        return attention(build, x, layer, heads[layer], rope, AttentionForm(window=windows[layer], sinks=True))

    def feed_forward(x: ir.Value, layer: int) -> ir.Value:
        return experts(build, x, layer, router, inner, _EXPERTS)

    norms = Norms(feed_forward="post_attention_norm")
    return build.head(decoder(build, embed(build), attend, feed_forward, norms))


ARCHITECTURES = {"gpt-oss": build}
