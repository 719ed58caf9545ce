"""Normalisation before a block: in floats, and in integers bit for bit as the hardware computes it.

The residual stream is int16 in memory; normalised tokens are int8. A token x of d channels is centred without a
division, ``x' = d x - sum(x)``, and divided by the root of ``v = d sum(x^2) - sum(x)^2``, which is ``d^2`` times its
variance. RMS normalisation leaves both sums of x out. ``1 / sqrt(v)`` comes from a table: with ``v = m 4^s`` and m from
1 to 4, 11 bits of m are the index, so the error is at most 1 part in 2^11. Then each channel is multiplied by an
integer (its scale) and an integer is added (its bias).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from moec.common.errors import UnsupportedError
from moec.targets.hls.design.numbers import MULTIPLIER_BITS, Norm, bits_for
from moec.targets.hls.design.projection import shifted

Array = np.ndarray[Any, Any]

ROOT_ENTRIES, ROOT_FIRST = 2048, 512
"""Entries of the table of inverse roots, and the first that is ever read."""
FRACTION_BITS = 12
"""The fraction bits of a normalised number, before its channel's scale; it is at most the root of the channels."""
_MOST_MULTIPLIER, _MOST_BIAS = (1 << (MULTIPLIER_BITS - 1)) - 1, (1 << 31) - 1
_MOST_SHIFT = 30
"""The largest shift: half of 2^30, which is added to round, is no larger than a bias may be."""


@dataclasses.dataclass(frozen=True)
class FloatNorm:
    """A normalisation in floats with ``weight`` and ``bias`` [d]. ``kind`` "layer" subtracts the mean, "rms" does
    not."""

    kind: Norm
    weight: Array
    bias: Array
    epsilon: float

    def run(self, tokens: Array) -> Array:
        """Normalise tokens, [T, d] → [T, d]."""
        centered = tokens - tokens.mean(axis=1, keepdims=True) if self.kind == "layer" else tokens
        variance = np.square(centered).mean(axis=1, keepdims=True)
        return (centered / np.sqrt(variance + self.epsilon) * self.weight + self.bias).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class QuantizedNorm:
    """A normalisation in integers. ``multipliers`` int16 [d], ``biases`` int32 [d] and one ``shift`` turn normalised
    numbers into int8. ``epsilon``, 1 or more, is in the units of v. ``stream_scale`` is the residual stream's."""

    kind: Norm
    stream_scale: float
    multipliers: Array
    biases: Array
    shift: int
    epsilon: int

    def run(self, tokens: Array, bits: int = 8) -> Array:
        """Normalise a residual stream, int16 [T, d] → integers of ``bits`` [T, d], as ``library/moec_normalize.h``
        does."""
        x = tokens.astype(np.int64)
        sums = x.sum(axis=1, keepdims=True) if self.kind == "layer" else np.zeros((len(x), 1), np.int64)
        width = x.shape[1]
        variance = width * np.square(x).sum(axis=1, keepdims=True) - np.square(sums) + self.epsilon
        scale = _halved_logarithm(variance)
        # v is below 2^62. Shift it right or left so that its 11 upper bits remain.
        places = np.where(
            2 * scale >= 9, variance >> np.maximum(2 * scale - 9, 0), variance << np.maximum(9 - 2 * scale, 0)
        )
        normal = ((width * x - sums) * inverse_roots()[places]) >> (16 - FRACTION_BITS + scale)
        most = 1 << (bits - 1)
        return np.clip(shifted(normal * self.multipliers + self.biases, self.shift), -most, most - 1)

    def lowered(self, shift: int) -> QuantizedNorm:
        """The same normalisation with a smaller ``shift``, for which multipliers and biases lose bits."""
        fewer = self.shift - shift
        return dataclasses.replace(
            self, multipliers=shifted(self.multipliers, fewer), biases=shifted(self.biases, fewer), shift=shift
        )


def quantize_norm(name: str, norm: FloatNorm, stream_scale: float, input_scale: float) -> QuantizedNorm:
    """Quantise a normalisation of an int16 stream with ``stream_scale`` to int8 results with ``input_scale``. ``name``:
    of the block, for errors.

    Raises UnsupportedError where an integer of the hardware cannot hold a weight, bias or epsilon.
    """
    width = len(norm.weight)
    if not np.isfinite(norm.weight).all() or not np.isfinite(norm.bias).all():
        raise UnsupportedError(
            f"{name}: weights or biases of its normalisation are not finite; expected finite numbers"
        )
    scales = norm.weight.astype(np.float64) / input_scale / (1 << FRACTION_BITS)
    biases = norm.bias.astype(np.float64) / input_scale
    largest = max(
        float(np.abs(scales).max()) / _MOST_MULTIPLIER, float(np.abs(biases).max()) / _MOST_BIAS, 2.0**-_MOST_SHIFT
    )
    shift = math.floor(-math.log2(largest))
    epsilon = max(1, round(norm.epsilon * (width / stream_scale) ** 2))
    if shift < 1:
        raise UnsupportedError(
            f"{name}: a normalisation with weights up to {np.abs(norm.weight).max():.3g} and biases up to "
            f"{np.abs(norm.bias).max():.3g} does not fit into 16 and 32 bits"
        )
    if epsilon >= 1 << (31 + 2 * bits_for(width)):
        raise UnsupportedError(
            f"{name}: epsilon {norm.epsilon:.3g} of a normalisation is larger than any variance of int16; expected less"
        )
    multipliers = np.round(scales * 2.0**shift).astype(np.int64)
    return QuantizedNorm(
        norm.kind, stream_scale, multipliers, np.round(biases * 2.0**shift).astype(np.int64), shift, epsilon
    )


def widened_norm(norm: FloatNorm, width: int) -> FloatNorm:
    """An RMS normalisation over ``width`` channels, the last of which are zeros, that gives the same results as
    ``norm`` does without them: zeros reduce the mean square, so weights and epsilon are scaled to match."""
    part = len(norm.weight) / width
    weight = np.pad(norm.weight * np.float32(part**0.5), (0, width - len(norm.weight)))
    return dataclasses.replace(norm, weight=weight, bias=np.zeros_like(weight), epsilon=norm.epsilon * part)


def stream_scale_for(*tensors: Array) -> float:
    """The scale of an int16 residual stream that holds these numbers with a quarter of headroom."""
    largest = max(float(np.abs(tensor).max(initial=0.0)) for tensor in tensors)
    return largest * 1.25 / 32767 if largest else 1.0


def inverse_roots() -> Array:
    """The table of inverse roots: entry i is 2^16 / sqrt((i + 0.5) / 512), or 0 below the first that is read."""
    places = np.arange(ROOT_FIRST, ROOT_ENTRIES)
    roots = np.round(65536 / np.sqrt((places + 0.5) / ROOT_FIRST)).astype(np.int64)
    return np.concatenate([np.zeros(ROOT_FIRST, np.int64), roots])


def _halved_logarithm(numbers: Array) -> Array:
    """The largest s with 4^s <= n, for each number n."""
    scale = np.zeros_like(numbers)
    for s in range(1, 32):
        scale[numbers >> (2 * s) != 0] = s
    return scale
