"""Nemotron-H: every layer is Mamba 2, attention without rotary embedding, or an MLP with squared ReLU. Experts have no
gate, are selected by sigmoids with a correction bias, stand next to a shared one, and may work on a latent."""

from __future__ import annotations

import onnx_ir as ir

from moec.frontend.gguf.graph.builder import Builder
from moec.frontend.gguf.parts.attention import Heads, attention
from moec.frontend.gguf.parts.embedding import embed
from moec.frontend.gguf.parts.feed_forward import RouterOptions, Step, experts, plain
from moec.frontend.gguf.parts.mamba import MambaSizes, mamba2
from moec.ir.dialect import ExpertsSpec

_UNUSED = ("rope.dimension_count", "rope.freq_base", "attention.layer_norm_epsilon")
"""Numbers that the converter writes, and that nothing reads: no layer rotates, and norms have another epsilon."""
_EXPERTS = ExpertsSpec("relu2", "none")


def build(build: Builder) -> ir.Value:
    metadata, heads, sizes = build.metadata, Heads.of(build), MambaSizes.of(build)
    for key in _UNUSED:
        metadata.number(key, 0.0)
    inner = metadata.by_layer("feed_forward_length", build.layers, least=0)
    mlp = _experts(build) if metadata.architecture == "nemotron_h_moe" else None

    def mix(x: ir.Value, layer: int) -> ir.Value:
        if inner[layer]:
            return plain(build, x, layer, inner[layer], "relu2") if mlp is None else mlp(x, layer)
        if heads[layer].groups:
            return attention(build, x, layer, heads[layer], None)
        return mamba2(build, x, layer, sizes)

    x = embed(build)
    for layer in range(build.layers):
        y = mix(build.rms_norm(x, f"blk.{layer}.attn_norm"), layer)
        x = build.write.op("Add", x, y, label=f"blk.{layer}.out")
    return build.head(x)


def _experts(build: Builder) -> Step:
    metadata = build.metadata
    normalize, scale = metadata.flag("expert_weights_norm", False), metadata.number("expert_weights_scale", 0.0)
    router = RouterOptions.of(build, "sigmoid", normalize, correction="needed").scaled(scale)
    own, shared = metadata.whole("expert_feed_forward_length"), metadata.whole("expert_shared_feed_forward_length")
    metadata.whole("expert_shared_count", 0, least=0)  # the length above is that of all shared experts together
    latent = metadata.whole("moe_latent_size", 0, least=0)

    def feed_forward(x: ir.Value, layer: int) -> ir.Value:
        name, rows = f"blk.{layer}", None
        if latent:
            rows = build.linear(x, f"{name}.ffn_latent_down", build.width, latent)
        y = experts(build, x, layer, router, own, _EXPERTS, rows, latent)
        if latent:
            y = build.linear(y, f"{name}.ffn_latent_up", latent, build.width)
        return build.write.op("Add", y, plain(build, x, layer, shared, "relu2", "_shexp"), label=f"{name}.with_shared")

    return feed_forward


ARCHITECTURES = {"nemotron_h_moe": build, "nemotron_h": build}
