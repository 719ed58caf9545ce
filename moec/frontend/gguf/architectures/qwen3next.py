"""Qwen3-Next and Qwen3.5: most layers are gated delta nets, the others attend with a gate for each head. Both have
softmax-routed experts next to a shared one, which a sigmoid weighs; dense Qwen3.5 has one MLP."""

from __future__ import annotations

import functools

import numpy as np
import onnx_ir as ir

from moec.common.errors import MoecError, UnsupportedError
from moec.frontend.gguf.graph.builder import Builder
from moec.frontend.gguf.parts.attention import AttentionForm, Heads, attention
from moec.frontend.gguf.parts.decoder import Norms
from moec.frontend.gguf.parts.delta_net import DeltaSizes, delta_net
from moec.frontend.gguf.parts.feed_forward import RouterOptions, Step, experts, gated, with_shared
from moec.frontend.gguf.parts.linear_attention import HeadOrder
from moec.frontend.gguf.parts.mtp import text_or_mtp
from moec.frontend.gguf.parts.rope import Rope

_INTERVAL = 4
"""Every layer of this number attends where metadata does not say which ones do."""
_FORM = AttentionForm(norm="head", gated=True)


def build(build: Builder, order: HeadOrder, moe: bool = True) -> ir.Value:
    """Build a model whose heads of values share keys in this order."""
    metadata, heads, sizes = build.metadata, Heads.of(build), DeltaSizes.of(build)
    rope, is_recurrent = Rope(build, heads[0].size, interleaved=False), _recurrent_layers(build)
    _check_sections(build, rope.size // 2)

    def mix(x: ir.Value, layer: int) -> ir.Value:
        if layer < build.layers and is_recurrent[layer]:
            return delta_net(build, x, layer, sizes, order)
        return attention(build, x, layer, heads[layer], rope, _FORM)

    inner = metadata.whole("feed_forward_length", None if not moe else 0, least=1 - moe)
    if not moe:
        return _finished(build, mix, lambda x, layer: gated(build, x, layer, inner))
    router = RouterOptions.of(build).scaled(metadata.number("expert_weights_scale", 0.0))
    own = metadata.whole("expert_feed_forward_length", inner // router.spec.k)
    shared = metadata.whole("expert_shared_feed_forward_length", inner)

    def feed_forward(x: ir.Value, layer: int) -> ir.Value:
        return with_shared(build, x, experts(build, x, layer, router, own), layer, shared, is_gated=True)

    return _finished(build, mix, feed_forward)


def _finished(build: Builder, mix: Step, feed_forward: Step) -> ir.Value:
    return text_or_mtp(build, mix, feed_forward, Norms(feed_forward="post_attention_norm"))


def _recurrent_layers(build: Builder) -> list[bool]:
    """Whether each layer is a gated delta net. Raises MoecError for flags that do not fit."""
    metadata, key = build.metadata, "attention.recurrent_layers"
    interval = metadata.whole("full_attention_interval", _INTERVAL)
    flags = metadata.listed(key)
    if flags is None:
        metadata.refuse(key, None)
        return [bool((layer + 1) % interval) for layer in range(build.layers)]
    if len(flags) < build.layers or not np.isin(flags, (0, 1)).all():
        raise MoecError(f"{metadata.where}: {key} has {len(flags)} entries; expected a flag for each layer")
    return [bool(flag) for flag in flags[: build.layers]]


def _check_sections(build: Builder, pairs: int) -> None:
    """Check that every pair of rotary embedding turns by a token's place in the text, as do all three kinds of places
    that ``rope.dimension_sections`` deals pairs to in turn. Raises UnsupportedError where one does not."""
    metadata, key = build.metadata, "rope.dimension_sections"
    sections = metadata.listed(key)
    if sections is None:
        return
    counts = sections[:3].astype(np.int64)
    place = np.arange(pairs) % max(1, int(sections.sum()))
    if len(sections) < 3 or (place // 3 >= counts[place % 3]).any():
        raise UnsupportedError(
            f"{metadata.where}: {key} is {sections.tolist()}; expected three numbers that deal out all {pairs} pairs"
        )


ARCHITECTURES = {
    "qwen3next": functools.partial(build, order="grouped"),
    "qwen35moe": functools.partial(build, order="tiled"),
    "qwen35": functools.partial(build, order="tiled", moe=False),
}
