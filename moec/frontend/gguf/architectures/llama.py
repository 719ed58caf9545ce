"""Llama, Mistral, Mixtral, Qwen2, Qwen3, Qwen3-MoE, OLMoE: RMS norms before attention and MLP, grouped queries, SwiGLU
or softmax-routed experts.

They differ in the elements that rotary embeddings pair, in norms of queries and keys, and in whether routing weights
are normalised.
"""

from __future__ import annotations

import functools

import onnx_ir as ir

from moec.frontend.gguf.graph.builder import Builder
from moec.frontend.gguf.parts.attention import AttentionForm, Heads, QueryNorm, attention
from moec.frontend.gguf.parts.decoder import decoder
from moec.frontend.gguf.parts.embedding import embed
from moec.frontend.gguf.parts.feed_forward import RouterOptions, experts, gated
from moec.frontend.gguf.parts.rope import Rope


def build(build: Builder, interleaved: bool = False, norm: QueryNorm = "", normalize: bool = True) -> ir.Value:
    """Build the decoder and return its logits. ``norm``: of queries and keys (:class:`AttentionForm`). ``normalize``:
    whether routing weights sum to 1."""
    heads, form = Heads.of(build), AttentionForm(norm=norm)
    rope = Rope(build, heads[0].size, interleaved)
    router = RouterOptions.of(build, normalize=normalize) if build.metadata.whole("expert_count", 0, least=0) else None
    inner = build.metadata.by_layer("feed_forward_length", build.layers)
    own = build.metadata.whole("expert_feed_forward_length", inner[0])

    def attend(x: ir.Value, layer: int) -> ir.Value:
        return attention(build, x, layer, heads[layer], rope, form)

    def feed_forward(x: ir.Value, layer: int) -> ir.Value:
        return gated(build, x, layer, inner[layer]) if router is None else experts(build, x, layer, router, own)

    return build.head(decoder(build, embed(build), attend, feed_forward))


ARCHITECTURES = {
    "llama": functools.partial(build, interleaved=True),
    "qwen2": build,
    "qwen3": functools.partial(build, norm="head"),
    "qwen3moe": functools.partial(build, norm="head"),
    "olmoe": functools.partial(build, norm="all", normalize=False),
}
