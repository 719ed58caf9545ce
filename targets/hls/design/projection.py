"""Products with constant weights in integers: weights, biases, and the multipliers that scale sums.

Without groups, each output channel has one scale for its weights, and one multiplier for its sum. With groups, every
``group`` inputs of a channel share a scale. The sum of each group is multiplied by a multiplier of its own to steps of
the total (``2^-FRACTION_BITS`` of a result's step), and the result is the total without its fraction.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from moec.common.errors import UnsupportedError
from moec.targets.hls.design.numbers import FRACTION_BITS

Array = np.ndarray[Any, Any]

_MOST_BIAS, _MOST_TOTAL_BIAS = 1 << 20, 1 << 23
"""The largest biases, in steps of the sums or totals that they are added to. A larger total saturates 16-bit results
anyway."""
_STEP_OF_NOTHING = 2.0**-16
"""The step of sums of matrices of zeros, in steps of the result: small, since other layers may share the shift."""


@dataclasses.dataclass(frozen=True)
class Multipliers:
    """Scales as integers: ``x * scale`` is ``(x * multiplier + half) >> shift``, with 16 bits per channel or group, and
    one shift for all. Multipliers of groups are signed, since a stored scale may be negative: it is where a group's
    number of largest magnitude is stored as the most negative integer."""

    values: Array
    shift: int

    @staticmethod
    def of(scales: Array, *, signed: bool = False) -> Multipliers:
        """The multipliers of these scales, none of which is 0. Raises UnsupportedError where 16 bits and a shift cannot
        represent them."""
        most = 32767 if signed else 65535
        largest = float(np.abs(scales).max())
        shift = math.floor(math.log2(most / largest)) if 0 < largest < math.inf else 0
        if not 1 <= shift <= 40:
            raise UnsupportedError(
                f"a scale of {largest:.3g} between two tensors has no 16-bit multiplier; check the calibration data"
            )
        return Multipliers(np.clip(_without_zeros(np.round(scales * 2.0**shift), scales), -most, most), shift)

    def lowered(self, shift: int) -> Multipliers:
        """The same multipliers with a smaller ``shift``, so with fewer bits."""
        return Multipliers(_without_zeros(shifted(self.values, self.shift - shift), self.values), shift)


def _without_zeros(rounded: Array, numbers: Array) -> Array:
    """``rounded``, with 1 or -1, by the sign of the number, in place of zeros."""
    return np.where(rounded == 0, np.where(numbers < 0, -1, 1), rounded).astype(np.int64)


def shifted(numbers: Array, shift: int) -> Array:
    """``numbers / 2^shift``, rounded half up."""
    return (numbers + ((1 << shift) >> 1)) >> shift


def saturated(numbers: Array, bits: int) -> Array:
    return np.clip(numbers, -(1 << (bits - 1)), (1 << (bits - 1)) - 1)


@dataclasses.dataclass(frozen=True)
class QuantizedProjection:
    """One matrix per expert in integers. ``weights`` [E, out, in]; ``group`` inputs share a multiplier (0: all of
    them). ``multipliers`` [E, out] or [E, out, groups]. ``biases`` [E, out] in steps of the sums, or, with groups, of
    the totals."""

    weights: Array
    biases: Array
    multipliers: Multipliers
    group: int = 0

    @property
    def groups(self) -> list[slice]:
        """The inputs of each group; a single slice of all inputs without groups."""
        inputs = self.weights.shape[2]
        size = self.group or inputs
        return [slice(first, min(first + size, inputs)) for first in range(0, inputs, size)]

    @property
    def sum_bits(self) -> int:
        """The width of an accumulator that holds any sum, or partial sum, of int8 inputs times these weights; with
        groups, of one group. Derived from the weights' values, not from their number."""
        largest = self._largest_sums()
        return _signed_bits(largest if self.group else largest[..., 0] + np.abs(self.biases))

    @property
    def total_bits(self) -> int:
        """The width of an accumulator that holds any total of groups, including biases."""
        if not self.group:
            return self.sum_bits
        scaled = (self._largest_sums() * np.abs(self.multipliers.values) >> self.multipliers.shift) + 1
        return _signed_bits(scaled.sum(axis=2) + np.abs(self.biases))

    def _largest_sums(self) -> Array:
        """The largest possible magnitude of each group's sum, [E, out, groups]."""
        return 128 * np.stack(
            [np.abs(self.weights[..., inputs].astype(np.int64)).sum(axis=2) for inputs in self.groups], 2
        )


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
    """Quantise ``weights`` [E, out, in] and ``biases`` [E, out] for inputs with ``input_scale`` and results with
    ``result_scales`` [out]. ``steps`` [E, out, groups]: scales of weights that are whole multiples of them already; 0
    for weights to be rounded. Only scales of groups may be negative.

    Raises UnsupportedError as :meth:`Multipliers.of`, for multiples that ``bits`` cannot hold, and for numbers that are
    not finite.
    """
    if not np.isfinite(weights).all() or not np.isfinite(biases).all():
        raise UnsupportedError("weights or biases are not finite; expected finite numbers")
    weight_steps = _steps_of(weights, bits, group, _STEP_OF_NOTHING * float(result_scales.min()) / input_scale)
    if steps is not None:
        weight_steps = np.where(steps != 0, steps, weight_steps)
    if not group:
        # A unit that training switched off has weights near 0, and its bias must fit nevertheless.
        weight_steps = np.maximum(weight_steps, np.abs(biases[..., None]) / (input_scale * _MOST_BIAS))
    integers = np.round(weights / _by_input(weight_steps, weights.shape[2], group))
    if np.abs(integers + 0.5).max() > (1 << (bits - 1)):
        raise UnsupportedError(f"weights in steps of their scales do not fit into {bits} bits")
    sums = input_scale * weight_steps
    if group:
        totals = result_scales * 2.0**-FRACTION_BITS
        whole = in_totals(biases / totals)
        multipliers = Multipliers.of(sums / totals[:, None], signed=True)
    else:
        whole = np.round(biases / sums[..., 0])
        multipliers = Multipliers.of(sums[..., 0] / result_scales)
    return QuantizedProjection(integers.astype(np.int8), whole.astype(np.int64), multipliers, group)


def in_totals(biases: Array) -> Array:
    """Biases as integers, clipped to a magnitude at which results saturate anyway."""
    return np.clip(np.round(biases), -_MOST_TOTAL_BIAS, _MOST_TOTAL_BIAS).astype(np.int64)


def _steps_of(weights: Array, bits: int, group: int, of_nothing: float) -> Array:
    """The scale [E, out, groups] that maps the largest weight of each group to the largest integer. A group of zeros
    gets the smallest scale of the others, so that multipliers lose no bits to it; ``of_nothing`` if all are zeros."""
    inputs = weights.shape[2]
    starts = np.arange(0, inputs, group or inputs)
    steps = np.maximum.reduceat(np.abs(weights), starts, axis=2) / ((1 << (bits - 1)) - 1)
    smallest = float(np.min(steps, where=steps > 0, initial=math.inf))
    return np.where(steps > 0, steps, smallest if smallest < math.inf else of_nothing)


def _by_input(steps: Array, inputs: int, group: int) -> Array:
    return np.repeat(steps, group, axis=2)[..., :inputs] if group else steps
