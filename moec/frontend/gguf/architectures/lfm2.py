"""LFM2 and LFM2-MoE: most layers are a gated short convolution, which caches its last inputs; the others attend.

The MoE has leading dense layers, and then experts that are selected by sigmoids with a correction bias.
"""

from __future__ import annotations

import onnx_ir as ir

from moec.frontend.gguf.graph.builder import Builder
from moec.frontend.gguf.parts.attention import AttentionForm, Heads, attention
from moec.frontend.gguf.parts.convolution import causal_convolution
from moec.frontend.gguf.parts.decoder import decoder
from moec.frontend.gguf.parts.embedding import embed
from moec.frontend.gguf.parts.feed_forward import RouterOptions, experts, gated, score_of
from moec.frontend.gguf.parts.rope import Rope


def build(build: Builder) -> ir.Value:
    metadata, heads, inner = build.metadata, Heads.of(build), build.metadata.whole("feed_forward_length")
    rope, taps = Rope(build, heads[0].size, interleaved=False), metadata.whole("shortconv.l_cache", least=2)
    is_moe = metadata.architecture == "lfm2moe"
    router = RouterOptions.of(build, score_of(build), correction="needed") if is_moe else None
    own = metadata.whole("expert_feed_forward_length") if is_moe else 0
    dense = metadata.whole("leading_dense_block_count", 0, least=0) if is_moe else build.layers
    form = AttentionForm(
        window=metadata.whole("attention.sliding_window", 0, least=0) if not is_moe else 0, norm="head"
    )

    def mix(x: ir.Value, layer: int) -> ir.Value:
        if heads[layer].groups:
            return attention(build, x, layer, heads[layer], rope, form)
        return _short_convolution(build, x, layer, taps)

    def feed_forward(x: ir.Value, layer: int) -> ir.Value:
        if router is None or layer < dense:
            return gated(build, x, layer, inner)
        return experts(build, x, layer, router, own)

    return build.head(decoder(build, embed(build), mix, feed_forward), norm="token_embd_norm")


def _short_convolution(build: Builder, x: ir.Value, layer: int, taps: int) -> ir.Value:
    """Compute ``c * conv(b * x)`` with three projections b, c and x; the convolution is causal, with ``taps`` weights
    for each channel."""
    write, name, width = build.write, f"blk.{layer}.shortconv", build.width
    both = build.linear(x, f"{name}.in_proj", width, 3 * width)
    before, after, inputs = write.split(both, width, width, width, axis=-1, label=name)
    mixed = causal_convolution(build, write.op("Mul", before, inputs), layer, f"{name}.conv", width, taps)
    return build.linear(write.op("Mul", after, mixed), f"{name}.out_proj", width, width)


ARCHITECTURES = {"lfm2": build, "lfm2moe": build}
