"""A product with constant weights in integers: weights, their steps, and the multipliers that scale sums.

Without groups an output channel has one step of its weights, and its sum one multiplier. With groups, every few
inputs share a step: the sum of each group is an integer, which a multiplier of its own brings to steps of the total
(``2^-FRACTION_BITS`` of a result's), and results are totals without their fraction.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from moec.errors import UnsupportedError
from moec.targets.hls.moe.design import FRACTION_BITS

Array = np.ndarray[Any, Any]

_MOST_BIAS, _MOST_TOTAL_BIAS = 1 << 20, 1 << 23
"""In steps of the sums, or totals, that they are added to. Results of 16 bits saturate below the latter."""
_STEP_OF_NOTHING = 2.0**-16
"""A sum of matrices without weights, in steps of its result: small, for other layers may share its shift."""


@dataclasses.dataclass(frozen=True)
class Multipliers:
    """``x * scale`` as ``(x * multiplier + half) >> shift``: 16 bits per channel, or group, and one shift for all.
    Those of groups have a sign: where the largest number of a group is its most negative integer, a step may be
    negative."""

    values: Array
    shift: int

    @staticmethod
    def of(scales: Array, *, signed: bool = False) -> Multipliers:
        """Raises UnsupportedError where 16 bits and a shift cannot say the scales, none of which is 0."""
        most = 32767 if signed else 65535
        largest = float(np.abs(scales).max())
        shift = math.floor(math.log2(most / largest)) if 0 < largest < math.inf else 0
        if not 1 <= shift <= 40:
            raise UnsupportedError(
                f"a scale of {largest:.3g} between two tensors has no 16-bit multiplier; check the calibration data"
            )
        return Multipliers(np.clip(_without_zeros(np.round(scales * 2.0**shift), scales), -most, most), shift)

    def lowered(self, shift: int) -> Multipliers:
        """With fewer bits, to a shift that is no larger."""
        return Multipliers(_without_zeros(shifted(self.values, self.shift - shift), self.values), shift)


def _without_zeros(rounded: Array, numbers: Array) -> Array:
    """``rounded``, but 1 with the sign of the number where that was rounded to 0."""
    return np.where(rounded == 0, np.where(numbers < 0, -1, 1), rounded).astype(np.int64)


def shifted(numbers: Array, shift: int) -> Array:
    """Divided by 2^shift, rounded half up."""
    return (numbers + ((1 << shift) >> 1)) >> shift


def saturated(numbers: Array, bits: int) -> Array:
    return np.clip(numbers, -(1 << (bits - 1)), (1 << (bits - 1)) - 1)


@dataclasses.dataclass(frozen=True)
class QuantizedProjection:
    """One matrix per expert as integers: ``weights`` [E, out, in], of which ``group`` inputs share a multiplier (0: all
    of them). ``multipliers`` [E, out] or [E, out, groups]; ``biases`` [E, out] in the steps of the sums, or of the
    totals of groups."""

    weights: Array
    biases: Array
    multipliers: Multipliers
    group: int = 0

    @property
    def groups(self) -> list[slice]:
        """The inputs of each group; one of all where there are none."""
        inputs = self.weights.shape[2]
        size = self.group or inputs
        return [slice(first, min(first + size, inputs)) for first in range(0, inputs, size)]

    @property
    def sum_bits(self) -> int:
        """That hold any sum, of a group, of int8 inputs, and every partial one: derived from the weights, not from
        their number."""
        largest = self._largest_sums()
        return _signed_bits(largest if self.group else largest[..., 0] + np.abs(self.biases))

    @property
    def total_bits(self) -> int:
        """The same of what groups sum up to, biases included."""
        if not self.group:
            return self.sum_bits
        scaled = (self._largest_sums() * np.abs(self.multipliers.values) >> self.multipliers.shift) + 1
        return _signed_bits(scaled.sum(axis=2) + np.abs(self.biases))

    def _largest_sums(self) -> Array:
        """Of each group, [E, out, groups]."""
        return 128 * np.stack([np.abs(self.weights[..., one].astype(np.int64)).sum(axis=2) for one in self.groups], 2)


def _signed_bits(largest: Array) -> int:
    return int(largest.max()).bit_length() + 1


def project(
    weights: Array,
    biases: Array,
    input_scale: float,
    result_scales: Array,
    bits: int,
    *,
    group: int = 0,
    steps: Array | None = None,
) -> QuantizedProjection:
    """``weights`` [E, out, in] and ``biases`` [E, out] of inputs in steps of ``input_scale``, for results in steps of
    ``result_scales`` [out]. ``steps`` [E, out, groups]: of weights that are whole multiples of them already, 0 of those
    that are to be rounded; below 0 in groups alone.

    Raises UnsupportedError as :meth:`Multipliers.of`, for multiples that ``bits`` do not hold, and for numbers that are
    not finite.
    """
    if not np.isfinite(weights).all() or not np.isfinite(biases).all():
        raise UnsupportedError("weights or biases that are not finite")
    found = _steps_of(weights, bits, group, _STEP_OF_NOTHING * float(result_scales.min()) / input_scale)
    if steps is not None:
        found = np.where(steps != 0, steps, found)
    if not group:
        # A unit that training switched off has weights near 0, but a bias that must fit all the same.
        found = np.maximum(found, np.abs(biases[..., None]) / (input_scale * _MOST_BIAS))
    integers = np.round(weights / _by_input(found, weights.shape[2], group))
    if np.abs(integers + 0.5).max() > (1 << (bits - 1)):
        raise UnsupportedError(f"weights are multiples of their scales that {bits} bits do not hold")
    sums = input_scale * found
    if group:
        totals = result_scales * 2.0**-FRACTION_BITS
        whole = in_totals(biases / totals)
        multipliers = Multipliers.of(sums / totals[:, None], signed=True)
    else:
        whole = np.round(biases / sums[..., 0])
        multipliers = Multipliers.of(sums[..., 0] / result_scales)
    return QuantizedProjection(integers.astype(np.int8), whole.astype(np.int64), multipliers, group)


def in_totals(biases: Array) -> Array:
    """In steps of totals, which results saturate below."""
    return np.clip(np.round(biases), -_MOST_TOTAL_BIAS, _MOST_TOTAL_BIAS).astype(np.int64)


def _steps_of(weights: Array, bits: int, group: int, of_nothing: float) -> Array:
    """The step [E, out, groups] with which the largest weight of each group is the largest integer. Zeros take the
    smallest step of the others, so that multipliers do not lose bits to them; ``of_nothing`` where there are none."""
    inputs = weights.shape[2]
    starts = np.arange(0, inputs, group or inputs)
    steps = np.maximum.reduceat(np.abs(weights), starts, axis=2) / ((1 << (bits - 1)) - 1)
    smallest = float(np.min(steps, where=steps > 0, initial=math.inf))
    return np.where(steps > 0, steps, smallest if smallest < math.inf else of_nothing)


def _by_input(steps: Array, inputs: int, group: int) -> Array:
    return np.repeat(steps, group, axis=2)[..., :inputs] if group else steps
