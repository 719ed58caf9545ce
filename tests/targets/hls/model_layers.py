"""Small plans of whole models with random weights and every kind of layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from moec.ir.dialect import ExpertsSpec, RouteSpec
from moec.targets.hls.attention.float_block import FloatAttention
from moec.targets.hls.attention.quantize import quantize_attention
from moec.targets.hls.design.normalization import FloatNorm, QuantizedNorm, quantize_norm
from moec.targets.hls.design.projection import project
from moec.targets.hls.model.plan import ModelPlan, Patches, QuantizedLinear
from moec.targets.hls.model.quantize import planned
from moec.targets.hls.moe.float_block import FloatBlock
from moec.targets.hls.moe.quantize import GATE_ONE, quantize

from .layers import float_block, in_groups
from .test_attention import SINKS, decoder

Array = np.ndarray[Any, Any]

PIXELS = 4
STREAM_SCALE, INPUT_SCALE = 2.0**-11, 2.0**-5


def norm(width: int) -> FloatNorm:
    return FloatNorm("layer", np.ones(width, np.float32), np.zeros(width, np.float32), 1e-6)


def moe_block(width: int, hidden: int, experts: int = 4, slots: int = 2) -> FloatBlock:
    spec = ExpertsSpec(activation="gelu", gate_layout="none")
    block = float_block(RouteSpec(slots, normalize=True), spec, experts, width, hidden)
    return dataclasses.replace(block, norm=norm(width))


def feed_forward(width: int, hidden: int) -> FloatBlock:
    """A dense layer: a single shared expert."""
    block = float_block(RouteSpec(0), ExpertsSpec(activation="gelu", gate_layout="none"), 0, width, hidden, shared=1)
    return dataclasses.replace(block, norm=norm(width))


def attention_block(width: int, heads: int) -> FloatAttention:
    random, head = np.random.default_rng(2), width // heads

    def normal(*shape: int, scale: float) -> Array:
        return random.normal(0, scale, shape).astype(np.float32)

    weights = {part: normal(heads, head, width, scale=width**-0.5) for part in ("query", "key", "value")}
    biases = {f"{part}_bias": normal(heads, head, scale=0.1) for part in ("query", "key", "value")}
    output, bias = normal(width, width, scale=width**-0.5), normal(width, scale=0.1)
    return FloatAttention("attention", norm(width), head**-0.5, **weights, **biases, output=output, output_bias=bias)


def gated_block(width: int, experts: int = 5, *, group: int = 0) -> FloatBlock:
    """Gated experts whose choice has a bias; with groups their weights are int4."""
    routing = RouteSpec(2, "sigmoid", normalize=True)
    block = float_block(routing, ExpertsSpec("silu", "separate"), experts, width, 40, biased_choice=True)
    return dataclasses.replace(in_groups(block, 4, group) if group else block, norm=norm(width))


def sigmoid_block(width: int, experts: int = 3) -> FloatBlock:
    """Experts without gates, chosen by sigmoids without a bias."""
    spec = ExpertsSpec(activation="gelu", gate_layout="none")
    return dataclasses.replace(
        float_block(RouteSpec(2, "sigmoid", normalize=True), spec, experts, width, 24), norm=norm(width)
    )


def plan(
    *,
    tokens: int = 5,
    width: int = 32,
    hidden: int = 48,
    pool: Any = "first",
    classes: int = 10,
    pixels: int = PIXELS,
    last: Sequence[FloatBlock] = (),
) -> ModelPlan:
    """A vision transformer: patches and a class token → attention, dense layer, attention, experts (or ``last``) →
    classes."""
    random = np.random.default_rng(3)
    stream = random.normal(0, 1, (3, tokens, width)).astype(np.float32)
    rows = stream.reshape(-1, width)
    floats = (attention_block(width, 2), feed_forward(width, hidden), attention_block(width, 2))
    blocks = [
        quantize_attention(block, stream, most_tokens=tokens, stream_scale=STREAM_SCALE)
        if isinstance(block, FloatAttention)
        else quantize(block, rows, most_tokens=tokens, stream_scale=STREAM_SCALE)
        for block in (*floats, *(last or [moe_block(width, hidden // 2)]))
    ]
    embedding = QuantizedLinear(
        project(
            _normal(random, 1, width, pixels) * (PIXELS / pixels) ** 0.5,
            np.zeros((1, width)),
            1 / 127,
            np.full(width, STREAM_SCALE),
            8,
        ),
        input_scale=1 / 127,
        output_scale=STREAM_SCALE,
        positions=random.integers(-2000, 2000, (tokens, width)).astype(np.int16),
    )
    normalization = quantize_norm("head", norm(width), STREAM_SCALE, INPUT_SCALE)
    gate = round(GATE_ONE / tokens) if pool == "mean" else GATE_ONE
    head = linear(random, classes, width, normalization, pool, gate)
    places = np.arange((tokens - 1) * pixels, dtype=np.int32).reshape(tokens - 1, pixels)
    patches = Patches(((tokens - 1) * pixels,), np.pad(places, ((1, 0), (0, 0)), constant_values=-1), 1 / 127, 0.0)
    return planned("vision", tokens, STREAM_SCALE, patches, embedding, blocks, [head])


def decoder_plan(*, tokens: int = 8, cached: int = 12, width: int = 24, classes: int = 0) -> ModelPlan:
    """A decoder of two layers: attention with norms, rotary embeddings and shared keys, in the second also a window and
    sinks, and gated experts. With ``classes``, it has a head, and an embedding of as many ids."""
    random = np.random.default_rng(3)
    stream = random.normal(0, 1, (3, cached or tokens, width)).astype(np.float32)
    blocks: list[Any] = []
    for seed in range(2):
        attention = decoder(8, width=width, normed=True, seed=seed, **({"window": 2, "sinks": SINKS} if seed else {}))
        attention_layer = quantize_attention(
            attention, stream, most_tokens=tokens, cached=cached, stream_scale=STREAM_SCALE
        )
        spec = ExpertsSpec(activation="silu", gate_layout="gate_up")
        experts = float_block(RouteSpec(2, normalize=True), spec, 4, width, 16, seed=seed)
        experts = dataclasses.replace(experts, norm=dataclasses.replace(norm(width), kind="rms"))
        rows = stream.reshape(-1, width)
        blocks += [attention_layer, quantize(experts, rows, most_tokens=tokens, stream_scale=STREAM_SCALE)]
    rms = quantize_norm("head", dataclasses.replace(norm(width), kind="rms"), STREAM_SCALE, INPUT_SCALE)
    heads = [linear(random, min(width, classes - first), width, rms, "none") for first in range(0, classes, width)]
    attention_layer = planned("decoder", tokens, STREAM_SCALE, None, None, blocks, heads)
    rows = random.integers(-4000, 4000, (classes, width)).astype(np.int16)
    return dataclasses.replace(attention_layer, token_rows=rows) if classes else attention_layer


def linear(
    random: np.random.Generator, classes: int, width: int, normalization: QuantizedNorm, pool: Any, gate: int = GATE_ONE
) -> QuantizedLinear:
    """A linear layer as a head."""
    scale = 2.0**-10
    weights, biases = _normal(random, 1, classes, width) * width**-0.5, _normal(random, 1, classes)
    down = project(weights, biases, INPUT_SCALE, np.full(classes, scale), 8)
    return QuantizedLinear(down, INPUT_SCALE, scale, normalization, pool, gate)


def _normal(random: np.random.Generator, *shape: int) -> Array:
    return random.normal(0, 1, shape).astype(np.float32)
