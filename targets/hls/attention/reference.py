"""The integer reference of an attention block: what the generated hardware computes, bit for bit, in numpy."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from moec.targets.hls.attention.design import KEY, QUERY, VALUE
from moec.targets.hls.attention.quantize import KEY_WEIGHT_ONE, QuantizedAttention
from moec.targets.hls.moe.reference import powers_of, product, projected, saturated

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class IntegerAttentionResults:
    """On T tokens: ``inputs``, normalised, int8 [T, d]; ``query``, ``key`` and ``value`` int8 [H, T, h]; ``weights``
    uint8 [H, T, T]; ``attended`` int8 [T, H h]; ``output`` int16 [T, d]."""

    inputs: Array
    query: Array
    key: Array
    value: Array
    weights: Array
    attended: Array
    output: Array


def run(block: QuantizedAttention, tokens: Array) -> IntegerAttentionResults:
    """One sequence, int16 [T, d], through the block."""
    shape = block.shape
    inputs = block.norm.run(tokens)
    by_head = (len(tokens), shape.heads, 3, shape.head_width)
    rows = projected(inputs, block.up, 0, 8).reshape(by_head).transpose(2, 1, 0, 3)
    weights = np.stack([weigh(block, query, key) for query, key in zip(rows[QUERY], rows[KEY], strict=True)])
    mixed = np.stack([product(one, value.T) for one, value in zip(weights, rows[VALUE], strict=True)])
    sums = np.maximum(weights.sum(axis=2, keepdims=True), 1)
    half = 1 << (block.mixed_shift - 1)
    attended = saturated((mixed * ((block.mixed_one + (sums >> 1)) // sums) + half) >> block.mixed_shift, 8)
    attended = attended.transpose(1, 0, 2).reshape(len(tokens), shape.heads * shape.head_width)
    output = saturated(projected(attended, block.down, 0, 16) + tokens, 16).astype(np.int16)
    return IntegerAttentionResults(inputs, rows[QUERY], rows[KEY], rows[VALUE], weights, attended, output)


def weigh(block: QuantizedAttention, query: Array, key: Array) -> Array:
    """The weights [T, T] of all keys for each query of a head, 255 for the best."""
    scores = product(query, key)
    below = scores.max(axis=1, keepdims=True, initial=-(1 << 40)) - scores
    return (powers_of(block.score, below) * KEY_WEIGHT_ONE + (1 << 16)) >> 17
