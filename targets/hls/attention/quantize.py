"""Quantisation of an attention block: scales from calibration data, and the constants of the hardware.

As in ``moe/quantize.py``, activations are int8 with one scale per tensor, and weights int8 with one per output channel.
The residual stream is int16. Attention weights of keys are uint8, 255 for a query's best key; the weighted sum of
values is divided by the sum of these.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from moec.common.errors import UnsupportedError
from moec.targets.hls.attention.float_block import FloatAttention, FloatAttentionResults
from moec.targets.hls.attention.latents import QuantizedLatents, quantize_latents
from moec.targets.hls.design.attention import AttentionShape
from moec.targets.hls.design.normalization import (
    FloatNorm,
    QuantizedNorm,
    quantize_norm,
    stream_scale_for,
    widened_norm,
)
from moec.targets.hls.design.numbers import INPUT_BITS, RESULT_BITS, bits_for
from moec.targets.hls.design.projection import Multipliers, QuantizedProjection, project, saturated, shifted
from moec.targets.hls.moe.quantize import POWER_ENTRIES, rounded, scale_for

Array = np.ndarray[Any, Any]

KEY_WEIGHT_ONE = 255
"""The attention weight of a query's best key."""
FINE_BITS, TURN_BITS = 6, 14
"""Fraction bits: of rows before their rotary embedding, in steps of the result, and of cosines and sines."""
SINK_OCTAVES = 12
"""The largest weight of a sink is that of a query's best key times 2 to this power."""
_MOST_RECIPROCAL = (1 << 20) - 2
_MOST_SINK = 1 << 30
_FINEST = 2.0**-20
"""The smallest scale of weighted values, as a part of the values' scale: no weight is a smaller part of the sum of
weights, sinks included."""
_SCORE_OF_NOTHING = 2.0**-6
"""The scale of scores that are always 0, in steps of the table: small, since other layers may share the shift."""


@dataclasses.dataclass(frozen=True)
class QuantizedTurns:
    """The steps from keys and queries, int8 rows of products, to rows that are scored: the norms, if any, of a head or
    of all heads together, with :data:`FINE_BITS` of fraction; then the rotary embedding by ``cosines`` and ``sines``,
    int16 [P, h / 2, rounded up] with :data:`TURN_BITS` of fraction."""

    cosines: Array
    sines: Array
    key_norm: QuantizedNorm | None = None
    query_norm: QuantizedNorm | None = None

    def lowered(self, shift: int) -> QuantizedTurns:
        """The same steps with a smaller ``shift`` of the norms, if there are any."""
        norms = [None if norm is None else norm.lowered(shift) for norm in (self.key_norm, self.query_norm)]
        return QuantizedTurns(self.cosines, self.sines, *norms)

    def run(self, norm: QuantizedNorm | None, rows: Array, past: int) -> Array:
        """Normalise and rotate rows [H, T, h] of tokens after ``past`` others → int8 [H, T, h]."""
        fine = rows << FINE_BITS if norm is None else _normalized(norm, rows)
        width = rows.shape[-1]
        fine = np.pad(fine, ((0, 0), (0, 0), (0, width % 2)))  # as rows of an odd width are in hardware
        cosines, sines = (table[past : past + rows.shape[1]] for table in (self.cosines, self.sines))
        even, odd = fine[..., 0::2], fine[..., 1::2]
        turned = np.stack([even * cosines - odd * sines, even * sines + odd * cosines], axis=-1)
        return saturated(shifted(turned.reshape(fine.shape)[..., :width], FINE_BITS + TURN_BITS), 8)


def _normalized(norm: QuantizedNorm, rows: Array) -> Array:
    """Normalise rows [H, T, h]: each on its own, or those of a token together. Keys with fewer heads than the hardware
    normalises are padded with zeros."""
    heads, count, width = rows.shape
    if len(norm.multipliers) == width:
        return norm.run(rows.reshape(-1, width), 16).reshape(rows.shape)
    tokens = np.zeros((count, len(norm.multipliers)), np.int64)
    tokens[:, : heads * width] = rows.swapaxes(0, 1).reshape(count, heads * width)
    return norm.run(tokens, 16)[:, : heads * width].reshape(count, heads, width).swapaxes(0, 1)


@dataclasses.dataclass(frozen=True)
class QuantizedAttention:
    """An attention block in integers: the scales of its tensors, and the constants that the hardware holds.

    - ``up``: one matrix [1, K (2 + H / K) h, d]: for each head of keys the rows of keys, of values, and of the queries
      that share them. ``down``: [1, d, H h].
    - ``turns``: norms and rotary embedding of keys and queries; None for a block without these and without sinks.
    - ``latents``: inputs of ``up`` in place of tokens, or None.
    - ``score``: from scores to indices of the table of powers.
    - ``window``: as of :class:`FloatAttention`.
    - ``sinks`` [H]: :data:`SINK_OCTAVES` times 1024, minus the score of the sink, in steps of the table of powers.
    - ``mixed_one``, ``mixed_shift``: a weighted sum of values is multiplied by ``mixed_one`` over the sum of the
      weights, and then shifted right by ``mixed_shift``.
    """

    shape: AttentionShape
    norm: QuantizedNorm
    input_scale: float
    query_scale: float
    key_scale: float
    value_scale: float
    attended_scale: float
    up: QuantizedProjection
    down: QuantizedProjection
    score: Multipliers
    mixed_one: int
    mixed_shift: int
    turns: QuantizedTurns | None = None
    window: int = 0
    sinks: Array | None = None
    latents: QuantizedLatents | None = None

    @property
    def token_scale(self) -> float:
        """The scale of the residual stream, which tokens come from and go to."""
        return self.norm.stream_scale

    @property
    def output_scale(self) -> float:
        return self.norm.stream_scale

    def quantized(self, tokens: Array) -> Array:
        """Tokens [..., d] as int16 of the residual stream, rounded half to even."""
        return rounded(tokens, self.token_scale, 16)


def quantize_attention(
    block: FloatAttention, tokens: Array, *, most_tokens: int, cached: int = 0, stream_scale: float | None = None
) -> QuantizedAttention:
    """Quantise a block, calibrated with sequences ``tokens`` [B, T, d]. ``cached``: positions that a cache of keys and
    values has room for. ``stream_scale``: of the residual stream, if the blocks on it share one.

    Raises UnsupportedError for calibration data that is empty or not finite, and for numbers that integers cannot
    represent.
    """
    seen = _calibrated(block, tokens)
    shape = shape_of(block, most_tokens, cached)
    stream_scale = stream_scale or stream_scale_for(tokens, seen.output, seen.results)
    input_scale, value_scale, attended_scale = (
        scale_for(tensor, 8) for tensor in (seen.inputs, seen.value, seen.attended)
    )
    attended_scale = max(attended_scale, value_scale * _FINEST)
    query_scales = _row_scales(seen.query_rows, seen.query, block.query_norm)
    key_scales = _row_scales(seen.key_rows, seen.key, block.key_norm)
    (query_scale, query_row_scale), (key_scale, key_row_scale) = query_scales, key_scales
    of_parts = [key_row_scale, value_scale, *[query_row_scale] * shape.sharing]
    latents = None
    if block.latents is not None:
        latents = quantize_latents(block.name, block.latents, seen.inputs, input_scale)
    down = project(block.output[None], block.output_bias[None], attended_scale, np.full(block.width, stream_scale), 8)
    mixed_scale = value_scale / attended_scale
    mixed_shift = math.floor(math.log2(KEY_WEIGHT_ONE * _MOST_RECIPROCAL / mixed_scale))
    score_scale = _score_scale(block, seen, query_scale * key_scale)
    if score_scale <= 0 or not 1 <= mixed_shift <= 40:
        raise UnsupportedError(
            f"{block.name}: the scale of scores is {block.scale:.3g} and that of values {value_scale:.3g}; "
            "expected more than 0"
        )
    return QuantizedAttention(
        shape=shape,
        norm=quantize_norm(block.name, block.norm, stream_scale, input_scale),
        input_scale=input_scale,
        query_scale=query_scale,
        key_scale=key_scale,
        value_scale=value_scale,
        attended_scale=attended_scale,
        up=_up(block, latents, input_scale, np.tile(np.repeat(of_parts, block.head_width), shape.key_heads)),
        down=down,
        score=Multipliers.of(np.array([score_scale])),
        mixed_one=round(mixed_scale * 2**mixed_shift),
        mixed_shift=mixed_shift,
        turns=_turns(block, shape.positions, key_scales, query_scales) if shape.turned else None,
        window=block.window,
        sinks=None if block.sinks is None else sink_places(block.sinks),
        latents=latents,
    )


def _calibrated(block: FloatAttention, tokens: Array) -> FloatAttentionResults:
    """The block's run on calibration data. Raises UnsupportedError where that is empty or not finite."""
    if not tokens.size or not np.isfinite(tokens).all():
        raise UnsupportedError(
            f"{block.name}: calibration data has {tokens.size} numbers; expected at least one, and all finite"
        )
    return block.run(tokens)


def _up(
    block: FloatAttention, latents: QuantizedLatents | None, input_scale: float, output_scales: Array
) -> QuantizedProjection:
    """The projection to keys, values and queries, from tokens or, where there are latents, from these."""
    weights = _by_head(block.key, block.value, block.query)
    biases = _by_head(block.key_bias, block.value_bias, block.query_bias)
    if latents is not None:
        weights, input_scale = weights * latents.scales.astype(np.float32), 1.0
    return project(weights, biases, input_scale, output_scales, 8)


def _score_scale(block: FloatAttention, seen: FloatAttentionResults, product_scale: float) -> float:
    """The scale of scores as indices of the table of powers, from the scale of the products of queries and keys."""
    scale = product_scale * block.scale * math.log2(math.e) * POWER_ENTRIES
    return scale if seen.query.any() and seen.key.any() else min(scale, _SCORE_OF_NOTHING)


def sink_places(sinks: Array) -> Array:
    """The integers of float sinks, as in :class:`QuantizedAttention`. A sink of minus infinity weighs nothing."""
    places = SINK_OCTAVES * POWER_ENTRIES - sinks.astype(np.float64) * math.log2(math.e) * POWER_ENTRIES
    return np.clip(np.round(places), -_MOST_SINK, _MOST_SINK).astype(np.int64)


def shape_of(block: FloatAttention, most_tokens: int, cached: int = 0) -> AttentionShape:
    """The shape of the block for calls of ``most_tokens``, and for a cache of ``cached`` positions.

    Raises UnsupportedError where queries and keys are normalised differently.
    """
    norms = (block.query_norm, block.key_norm)
    heads = (block.heads, len(block.key)) if block.joint_norm else (1, 1)
    if any(norm is not None for norm in norms):
        for norm, count in zip(norms, heads, strict=True):
            _expect_norm(norm, count * block.head_width)
    return AttentionShape(
        most_tokens,
        block.width,
        block.heads,
        block.head_width,
        block.norm.kind,
        sharing=block.sharing,
        causal=block.causal,
        turned=block.turns is not None or block.sinks is not None or any(norm is not None for norm in norms),
        head_norm=any(norm is not None for norm in norms),
        joint_norm=block.joint_norm,
        cached=cached,
        windowed=block.window > 0,
        sinks=block.sinks is not None,
        latents=None if block.latents is None else block.latents.shape,
    )


def _expect_norm(norm: FloatNorm | None, channels: int) -> None:
    if norm is None or norm.kind != "rms" or norm.bias.any() or len(norm.weight) != channels:
        raise UnsupportedError(
            "normalises its queries and keys in another way; expected RMS normalisation of both, by head or over "
            "all heads"
        )


def _row_scales(rows: Array, scored: Array, norm: FloatNorm | None) -> tuple[float, float]:
    """The scale of rows that are scored, and of the product's rows before; without a normalisation both are the
    same."""
    if norm is None:
        scale = scale_for(np.stack([rows, scored]), 8)
        return scale, scale
    return scale_for(scored, 8), scale_for(rows, 8)


def _turns(
    block: FloatAttention, positions: int, key_scales: tuple[float, float], query_scales: tuple[float, float]
) -> QuantizedTurns:
    half = -(-block.head_width // 2)
    cosines, sines = np.ones((positions, half)), np.zeros((positions, half))
    if block.turns is not None:
        cosines, sines = block.turns.cosines[:positions], block.turns.sines[:positions]
    if len(cosines) < positions:
        raise UnsupportedError(
            f"{block.name}: its rotary embedding has {len(cosines)} positions; expected {positions}; give a "
            f"--max-length of {len(cosines)} at most, or export the graph for any length"
        )
    of_cosine, of_sine = (
        np.round(array.astype(np.float64) * (1 << TURN_BITS)).astype(np.int64) for array in (cosines, sines)
    )
    largest = max(int(np.abs(steps).max(initial=0)) for steps in (of_cosine, of_sine))
    if largest >= 1 << (RESULT_BITS - 1):
        raise UnsupportedError(
            f"{block.name}: its rotary embedding has numbers up to {largest / (1 << TURN_BITS):.3g}; expected less "
            "than 2"
        )
    norms = [
        _head_norm(block, norm, *scales)
        for norm, scales in ((block.key_norm, key_scales), (block.query_norm, query_scales))
    ]
    shift = min((norm.shift for norm in norms if norm is not None), default=0)
    return QuantizedTurns(of_cosine, of_sine, *norms).lowered(shift)


def _head_norm(block: FloatAttention, norm: FloatNorm | None, scale: float, row_scale: float) -> QuantizedNorm | None:
    if norm is None:
        return None
    width = block.heads * block.head_width if block.joint_norm else block.head_width
    quantized = quantize_norm(block.name, widened_norm(norm, width), row_scale, scale / (1 << FINE_BITS))
    if quantized.epsilon >= 1 << (2 * INPUT_BITS - 1 + 2 * bits_for(width)):
        raise UnsupportedError(
            f"{block.name}: epsilon {norm.epsilon:.3g} of a normalisation is larger than the mean square of any "
            "int8 row; expected less"
        )
    return quantized


def _by_head(key: Array, value: Array, query: Array) -> Array:
    """Rows of keys and values [K, h, ...] and of queries [H, h, ...], interleaved by head of keys:
    [1, K (2 + H / K) h, ...]."""
    queries = query.reshape(len(key), -1, *query.shape[1:])
    parts = np.concatenate([key[:, None], value[:, None], queries], axis=1)
    return parts.reshape(1, -1, *query.shape[2:])
