"""An attention block in floats: what is quantised, and what the result is compared with."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from moec.targets.hls.normalization import FloatNorm, stream_scale_for

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class FloatAttention:
    """``x + output(heads(norm(x)))`` without masks and caches: every token of a sequence attends to all of them.

    ``query``, ``key`` and ``value`` [H, h, d] with biases [H, h]: H heads of h channels. ``output`` [d, H h] with bias
    [d]. Scores are multiplied with ``scale`` before their softmax. All in float32.
    """

    name: str
    norm: FloatNorm
    scale: float
    query: Array
    query_bias: Array
    key: Array
    key_bias: Array
    value: Array
    value_bias: Array
    output: Array
    output_bias: Array

    @property
    def heads(self) -> int:
        return len(self.query)

    @property
    def head_width(self) -> int:
        return int(self.query.shape[1])

    @property
    def width(self) -> int:
        return int(self.query.shape[2])

    def run(self, tokens: Array) -> FloatAttentionResults:
        """Sequences [B, T, d] through the block, with everything on the way."""
        batch, count, width = tokens.shape
        inputs = self.norm.run(tokens.reshape(-1, width)).reshape(tokens.shape)
        projected = [
            np.einsum("btd,hcd->bhtc", inputs, weights, optimize=True) + bias[:, None]
            for weights, bias in (
                (self.query, self.query_bias),
                (self.key, self.key_bias),
                (self.value, self.value_bias),
            )
        ]
        query, key, value = projected
        scores = query @ key.swapaxes(2, 3) * self.scale
        terms = np.exp(scores - scores.max(axis=3, keepdims=True, initial=-np.inf))
        attended = (terms / terms.sum(axis=3, keepdims=True)) @ value
        attended = attended.swapaxes(1, 2).reshape(batch, count, self.heads * self.head_width)
        results = attended @ self.output.T + self.output_bias
        return FloatAttentionResults(inputs, query, key, value, attended, results, tokens + results)

    def needed_scale(self, tokens: Array) -> float:
        """What a step of the residual stream stands for at least, by its sequences [B, T, d] and what the block makes
        of them."""
        seen = self.run(tokens)
        return stream_scale_for(tokens, seen.output, seen.results)


@dataclasses.dataclass(frozen=True)
class FloatAttentionResults:
    """``inputs``, normalised, [B, T, d]; ``query``, ``key`` and ``value`` [B, H, T, h]; ``attended`` [B, T, H h];
    ``results`` of the output product and ``output`` [B, T, d]."""

    inputs: Array
    query: Array
    key: Array
    value: Array
    attended: Array
    results: Array
    output: Array
