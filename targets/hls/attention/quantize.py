"""An attention block in integers: scales from calibration data, and the constants of the hardware.

As in ``quantize.py``: int8 activations with one scale per tensor, int8 weights with one per output channel. The
residual stream is int16. Weights of keys are uint8, 255 for a query's best key; what they weigh is divided by their
sum.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from moec.errors import UnsupportedError
from moec.targets.hls.attention.design import AttentionShape
from moec.targets.hls.attention.float_block import FloatAttention
from moec.targets.hls.moe.projection import Multipliers, QuantizedProjection, project
from moec.targets.hls.moe.quantize import POWER_ENTRIES, rounded, scale_for
from moec.targets.hls.normalization import QuantizedNorm, quantize_norm, stream_scale_for

Array = np.ndarray[Any, Any]

KEY_WEIGHT_ONE = 255
"""What stands for the weight of a query's best key."""
_MOST_RECIPROCAL = (1 << 20) - 2
_SCORE_OF_NOTHING = 2.0**-6
"""A step of scores that are always 0, in places of the table: small, for other layers may share the shift behind it."""


@dataclasses.dataclass(frozen=True)
class QuantizedAttention:
    """``up``: one matrix [1, H 3 h, d], of each head the rows of keys, values and queries; ``down`` [1, d, H h].
    ``score``: from scores to places in the table of powers. ``mixed_one`` over the sum of a query's weights is what
    their weighted sum of values is multiplied with, and then shifted by ``mixed_shift``."""

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

    @property
    def token_scale(self) -> float:
        """What a step of the residual stream stands for, which tokens come from and go to."""
        return self.norm.stream_scale

    @property
    def output_scale(self) -> float:
        return self.norm.stream_scale

    def quantized(self, tokens: Array) -> Array:
        """Tokens [..., d] as the int16 of the residual stream, rounded half to even."""
        return rounded(tokens, self.token_scale, 16)


def quantize_attention(
    block: FloatAttention, tokens: Array, *, most_tokens: int, stream_scale: float | None = None
) -> QuantizedAttention:
    """Calibrate with sequences ``tokens`` [B, T, d]. ``stream_scale``: of the residual stream, where blocks that share
    one have agreed.

    Raises UnsupportedError for calibration data without a finite number, and for numbers that no integer can say.
    """
    if not tokens.size or not np.isfinite(tokens).all():
        raise UnsupportedError(f"{block.name}: {tokens.size} calibration numbers, all of which must be finite")
    seen = block.run(tokens)
    stream_scale = stream_scale or stream_scale_for(tokens, seen.output, seen.results)
    input_scale = scale_for(seen.inputs, 8)
    query_scale, key_scale, value_scale = (scale_for(tensor, 8) for tensor in (seen.query, seen.key, seen.value))
    attended_scale = scale_for(seen.attended, 8)
    rows = np.repeat([key_scale, value_scale, query_scale], block.head_width)
    up = project(
        _by_head(block.key, block.value, block.query),
        _by_head(block.key_bias, block.value_bias, block.query_bias),
        input_scale,
        np.tile(rows, block.heads),
        8,
    )
    down = project(block.output[None], block.output_bias[None], attended_scale, np.full(block.width, stream_scale), 8)
    mixed_scale = value_scale / attended_scale
    mixed_shift = math.floor(math.log2(KEY_WEIGHT_ONE * _MOST_RECIPROCAL / mixed_scale))
    score_scale = query_scale * key_scale * block.scale * math.log2(math.e) * POWER_ENTRIES
    if not seen.query.any() or not seen.key.any():
        score_scale = min(score_scale, _SCORE_OF_NOTHING)
    if score_scale <= 0 or not 1 <= mixed_shift <= 40:
        raise UnsupportedError(
            f"{block.name}: scores times {block.scale:.3g}, values in steps of {value_scale:.3g}; expected more than 0"
        )
    return QuantizedAttention(
        shape=AttentionShape(most_tokens, block.width, block.heads, block.head_width, block.norm.kind),
        norm=quantize_norm(block.name, block.norm, stream_scale, input_scale),
        input_scale=input_scale,
        query_scale=query_scale,
        key_scale=key_scale,
        value_scale=value_scale,
        attended_scale=attended_scale,
        up=up,
        down=down,
        score=Multipliers.of(np.array([score_scale])),
        mixed_one=round(mixed_scale * 2**mixed_shift),
        mixed_shift=mixed_shift,
    )


def _by_head(*parts: Array) -> Array:
    """Parts [H, h, ...] → [1, H parts h, ...]."""
    return np.stack(parts, axis=1).reshape(1, -1, *parts[0].shape[2:])
