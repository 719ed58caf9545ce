"""The integer reference of an attention block in numpy: bit for bit the results of the generated hardware."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from moec.targets.hls.attention.float_block import met_keys
from moec.targets.hls.attention.quantize import KEY_WEIGHT_ONE, SINK_OCTAVES, QuantizedAttention
from moec.targets.hls.design.attention import KEY, QUERY, VALUE
from moec.targets.hls.design.projection import saturated
from moec.targets.hls.moe.reference import MOST_EXPONENT, power_of_half, powers_of, product, projected

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class IntegerAttentionResults:
    """Tensors of a block on T tokens after P others.

    - ``inputs`` int8 [T, d]: normalised tokens.
    - ``query`` int8 [H, T, h]: normalised and rotated.
    - ``key`` and ``value`` int8 [K, P + T, h]: the contents of a cache.
    - ``weights`` uint8 [H, T, P + T], ``attended`` int8 [T, H h], ``output`` int16 [T, d].
    """

    inputs: Array
    query: Array
    key: Array
    value: Array
    weights: Array
    attended: Array
    output: Array


def run(
    block: QuantizedAttention, tokens: Array, earlier: IntegerAttentionResults | None = None
) -> IntegerAttentionResults:
    """Run one sequence, int16 [T, d], through the block. ``earlier``: results for the tokens before it, whose keys and
    values a cache holds."""
    shape = block.shape
    inputs = block.norm.run(tokens)
    row_inputs = inputs if block.latents is None else block.latents.run(inputs)
    by_head = (len(tokens), shape.key_heads, 2 + shape.sharing, shape.head_width)
    rows = projected(row_inputs, block.up, 0, 8).reshape(by_head).transpose(2, 1, 0, 3)
    query = rows[QUERY:].swapaxes(0, 1).reshape(shape.heads, len(tokens), shape.head_width)
    key, value = rows[KEY], rows[VALUE]
    past = 0 if earlier is None else earlier.key.shape[1]
    if block.turns is not None:
        query = block.turns.run(block.turns.query_norm, query, past)
        key = block.turns.run(block.turns.key_norm, key, past)
    if earlier is not None:
        key, value = np.concatenate([earlier.key, key], 1), np.concatenate([earlier.value, value], 1)
    shared_key, shared_value = (np.repeat(item, shape.sharing, axis=0) for item in (key, value))
    none = [None] * shape.heads if block.sinks is None else block.sinks
    weighed = [weigh(block, *item) for item in zip(query, shared_key, none, strict=True)]
    weights, sums = (np.stack(parts) for parts in zip(*weighed, strict=True))
    mixed = np.stack([product(item, of_head.T) for item, of_head in zip(weights, shared_value, strict=True)])
    half = 1 << (block.mixed_shift - 1)
    attended = saturated((mixed * ((block.mixed_one + (sums >> 1)) // sums) + half) >> block.mixed_shift, 8)
    attended = attended.transpose(1, 0, 2).reshape(len(tokens), shape.heads * shape.head_width)
    output = saturated(projected(attended, block.down, 0, 16) + tokens, 16).astype(np.int16)
    return IntegerAttentionResults(inputs, query, key, value, weights, attended, output)


def weigh(block: QuantizedAttention, query: Array, key: Array, sink: int | None = None) -> tuple[Array, Array]:
    """The weights [T, P + T] of all keys for each query of a head, 255 for the best key and 0 for masked ones, and
    their sums [T, 1], which include the weight of a sink."""
    scores = product(query, key)
    count, keys = scores.shape
    met = met_keys(count, keys, block.window) if block.shape.causal else np.ones((count, keys), bool)
    largest = scores.max(axis=1, keepdims=True, initial=-(1 << 40), where=met)
    terms = powers_of(block.score, np.where(met, largest - scores, 0))
    weights = np.where(met, (terms * KEY_WEIGHT_ONE + (1 << 16)) >> 17, 0)
    sums = np.maximum(weights.sum(axis=1, keepdims=True), 1)
    return weights, sums if sink is None else sums + _sink_weight(block, largest, sink)


def _sink_weight(block: QuantizedAttention, largest: Array, sink: int) -> Array:
    """The weight of a sink, relative to the key with the largest score."""
    places = (largest * int(block.score.values[0])) >> block.score.shift
    terms = power_of_half(np.clip(places + sink, 0, MOST_EXPONENT))
    return (terms * KEY_WEIGHT_ONE + (1 << (16 - SINK_OCTAVES))) >> (17 - SINK_OCTAVES)
