"""The float form of an attention block: it is quantised, and integers are compared with it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from moec.common.errors import UnsupportedError
from moec.targets.hls.attention.latents import FloatLatents
from moec.targets.hls.design.normalization import FloatNorm, stream_scale_for

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class RotaryEmbedding:
    """A rotary embedding (RoFormer, arXiv 2104.09864): it rotates channels 2i and 2i + 1 of a query or key by an angle
    whose ``cosines`` and ``sines`` are [P, h / 2], for positions from 0 on. Pairs that stay have 1 and 0."""

    cosines: Array
    sines: Array

    def widened(self, width: int) -> RotaryEmbedding:
        """The embedding of rows of ``width`` channels, the last of which stay."""
        more = ((0, 0), (0, width // 2 - self.cosines.shape[1]))
        return RotaryEmbedding(np.pad(self.cosines, more, constant_values=1), np.pad(self.sines, more))

    def run(self, rows: Array) -> Array:
        """Rotate rows [..., T, h] at the first T positions."""
        cosines, sines = self.cosines[: rows.shape[-2]], self.sines[: rows.shape[-2]]
        even, odd = rows[..., 0::2], rows[..., 1::2]
        turned = np.stack([even * cosines - odd * sines, even * sines + odd * cosines], axis=-1)
        return turned.reshape(rows.shape)


def met_keys(tokens: int, keys: int, window: int) -> Array:
    """The causal mask, bool [tokens, keys], of the last ``tokens`` of ``keys`` positions: True for keys up to the token
    itself, or, if ``window`` is not 0, for the last ``window`` of these."""
    met = np.tri(tokens, keys, keys - tokens, dtype=bool)
    return met & ~np.tri(tokens, keys, keys - tokens - window, dtype=bool) if window else met


def normalized_rows(norm: FloatNorm | None, rows: Array) -> Array:
    """Normalise rows [B, H, T, h] of heads: each on its own, or, if ``norm`` has weights for all heads, the rows of a
    token together."""
    batch, heads, count, width = rows.shape
    if norm is None:
        return rows
    if len(norm.weight) == width:
        return norm.run(rows.reshape(-1, width)).reshape(rows.shape)
    tokens = norm.run(rows.swapaxes(1, 2).reshape(-1, heads * width))
    return tokens.reshape(batch, count, heads, width).swapaxes(1, 2)


@dataclasses.dataclass(frozen=True)
class FloatAttention:
    """The block ``x + output(heads(norm(x)))``, all in float32.

    - ``query`` [H, h, d] with biases [H, h]: H heads of h channels. ``key`` and ``value`` [K, h, d] with biases [K, h]:
      H / K neighbouring heads of queries share a head of these. ``output`` [d, H h] with bias [d].
    - ``query_norm`` and ``key_norm``: RMS norms of each row of h channels, or of the rows of all heads together.
    - ``turns``: the rotary embedding of queries and keys, after their norms.
    - ``latents``: if given, rows are products of these instead of tokens, and d is their channels.
    - ``scale``: of scores, before the softmax.
    - ``causal``: a token attends to tokens up to itself, to at most ``window`` of them if that is not 0; otherwise to
      the whole sequence.
    - ``sinks`` [H]: attention sinks, scores that take part in a head's softmax without a value.
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
    causal: bool = False
    query_norm: FloatNorm | None = None
    key_norm: FloatNorm | None = None
    turns: RotaryEmbedding | None = None
    window: int = 0
    sinks: Array | None = None
    latents: FloatLatents | None = None

    @property
    def heads(self) -> int:
        return len(self.query)

    @property
    def sharing(self) -> int:
        """Heads of queries that share a head of keys and values."""
        return len(self.query) // len(self.key)

    @property
    def head_width(self) -> int:
        return int(self.query.shape[1])

    @property
    def joint_norm(self) -> bool:
        """Whether all heads of a token are normalised together."""
        return any(norm is not None and len(norm.weight) > self.head_width for norm in (self.query_norm, self.key_norm))

    @property
    def width(self) -> int:
        return len(self.output)

    def run(self, tokens: Array) -> FloatAttentionResults:
        """Run sequences [B, T, d] through the block; returns its output and all tensors in between.

        Raises UnsupportedError for sequences longer than the rotary embedding's positions.
        """
        batch, count, width = tokens.shape
        if self.turns is not None and count > len(self.turns.cosines):
            raise UnsupportedError(
                f"{self.name}: calibration sequences have {count} tokens; expected at most "
                f"{len(self.turns.cosines)}; give shorter ones, or a larger --max-tokens or --max-length"
            )
        inputs = self.norm.run(tokens.reshape(-1, width)).reshape(tokens.shape)
        row_inputs = inputs if self.latents is None else self.latents.run(inputs)
        projected = [
            np.einsum("btd,hcd->bhtc", row_inputs, weights, optimize=True) + bias[:, None]
            for weights, bias in (
                (self.query, self.query_bias),
                (self.key, self.key_bias),
                (self.value, self.value_bias),
            )
        ]
        query_rows, key_rows, value = projected
        query, key = self._turned(self.query_norm, query_rows), self._turned(self.key_norm, key_rows)
        scores = query @ self._shared(key).swapaxes(2, 3) * self.scale
        if self.causal:
            scores = np.where(met_keys(count, count, self.window), scores, -np.inf)
        sinks = np.full(self.heads, -np.inf, np.float32) if self.sinks is None else self.sinks
        largest = np.maximum(scores.max(axis=3, keepdims=True, initial=-np.inf), sinks[:, None, None])
        terms, of_sinks = np.exp(scores - largest), np.exp(sinks[:, None, None] - largest)
        attended = (terms / (terms.sum(axis=3, keepdims=True) + of_sinks)) @ self._shared(value)
        attended = attended.swapaxes(1, 2).reshape(batch, count, self.heads * self.head_width)
        results = attended @ self.output.T + self.output_bias
        return FloatAttentionResults(
            inputs, query_rows, key_rows, query, key, value, attended, results, tokens + results
        )

    def _turned(self, norm: FloatNorm | None, rows: Array) -> Array:
        """Normalise and rotate rows [B, H, T, h]."""
        normal = normalized_rows(norm, rows)
        return normal if self.turns is None else self.turns.run(normal)

    def _shared(self, rows: Array) -> Array:
        """Repeat heads of keys or values, [B, K, T, h] → [B, H, T, h]."""
        return np.repeat(rows, self.sharing, axis=1)

    def needed_scale(self, tokens: Array) -> float:
        """The smallest scale of the residual stream with which its sequences [B, T, d] and the block's results fit."""
        seen = self.run(tokens)
        return stream_scale_for(tokens, seen.output, seen.results)


@dataclasses.dataclass(frozen=True)
class FloatAttentionResults:
    """Tensors of a block on sequences.

    - ``inputs`` [B, T, d]: normalised tokens.
    - ``query_rows`` [B, H, T, h] and ``key_rows`` [B, K, T, h]: results of the products.
    - ``query``, ``key``: these normalised and rotated, of the same shapes; ``value`` [B, K, T, h].
    - ``attended`` [B, T, H h]: weighted values.
    - ``results`` [B, T, d] of the output product, and ``output`` [B, T, d] with the residual.
    """

    inputs: Array
    query_rows: Array
    key_rows: Array
    query: Array
    key: Array
    value: Array
    attended: Array
    results: Array
    output: Array
