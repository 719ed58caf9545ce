"""Scales that lose the least where inputs are large.

A scale smaller than the one that the largest element of a group needs clips that element and makes all others finer.
The candidates are shares of that scale, of integers without zero points with either sign; the best is then fitted to
the integers that it leads to by least squares. Candidates are compared by the squares of the errors of a group, each
times the importance of its input (the search of clipping of AWQ, arXiv 2306.00978, with the mean square of an input in
the place of sampled rows).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from moec.ir.weights.encode import (
    Encoded,
    group_count,
    numbers_within,
    per_element,
    scales_of,
    stored,
)
from moec.ir.weights.format import WeightFormat

Array = np.ndarray[Any, Any]

_SHARES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.45, 0.4)
_SHARES_OF_BYTES = _SHARES[:4]
_SHARES_OF_EXPONENTS = (1.0, 0.5, 2.0)
_MOVABLE_ZERO_BITS = 3
"""Up to so many bits the neighbours of a zero point are tried, too: a step is a large part of the range."""


class Scales(NamedTuple):
    """Scales in the type that they are stored in, and zero points in float32. Both have an entry for each group
    [groups,out] or for each input [in,out]."""

    scale: Array
    zero_point: Array | None

    def of_inputs(self, form: WeightFormat, size: int) -> Scales:
        """Repeat the entries of groups for each of ``size`` inputs, with scales in float32."""
        zero = self.zero_point
        return Scales(
            per_element(self.scale.astype(np.float32), form, size, 0),
            None if zero is None else per_element(zero, form, size, 0),
        )

    def picked(self, inputs: Array | int) -> Scales:
        """Return the entries of some rows."""
        return Scales(self.scale[inputs], None if self.zero_point is None else self.zero_point[inputs])

    def stored_with(self, numbers: Array, form: WeightFormat) -> Encoded:
        """Put ``numbers`` [in,out], which :func:`rounded` returned for these scales, together with the scales."""
        zero = self.zero_point
        return Encoded(stored(numbers, form), self.scale, None if zero is None else stored(zero, form))


def rounded(weight: Array, scales: Scales, form: WeightFormat) -> tuple[Array, Array]:
    """Return the numbers nearest to a weight, with zero points added, and the weight that they stand for, both in
    float32. Scales broadcast to the weight."""
    scale = scales.scale.astype(np.float32, copy=False)
    numbers = numbers_within(weight, scale, scales.zero_point, form)
    if not form.elements.whole:
        numbers = stored(numbers, form).astype(np.float32)
    return numbers, (numbers if scales.zero_point is None else numbers - scales.zero_point) * scale


def search_scales(weight: Array, importance: Array, form: WeightFormat) -> Scales:
    """Find the scales [groups,out] of ``weight`` [in,out] (float32). ``importance`` [in] says how much each input's
    squared error counts. Raises ValueError as :func:`moec.ir.weights.encode.encode` does."""
    first, zero = scales_of(weight, form, 0)
    scale, zero_point = first.copy(), None if zero is None else zero.astype(np.float32)
    size, factor = form.group or len(weight), np.sqrt(importance).astype(np.float32)[:, None]
    for group in range(group_count(len(weight), form)):
        inputs = slice(group * size, (group + 1) * size)
        search = _Search(weight[inputs], factor[inputs], form)
        best = search.run(Scales(scale, zero_point).picked(group))
        scale[group] = best.scale
        if zero_point is not None:
            zero_point[group] = best.zero_point
    return Scales(scale, zero_point)


def nearest(weight: Array, form: WeightFormat, importance: Array) -> Encoded:
    """Round ``weight`` [in,out] to nearest, with the scales that :func:`search_scales` finds."""
    scales = search_scales(weight, importance, form)
    numbers, _ = rounded(weight, scales.of_inputs(form, len(weight)), form)
    return scales.stored_with(numbers, form)


class _Search:
    """Searches the scales of one group of inputs [group,out]. Errors are multiplied by ``factor`` [group,1] before they
    are squared."""

    def __init__(self, weight: Array, factor: Array, form: WeightFormat) -> None:
        self._weight, self._factor, self._form = weight, factor, form
        self._least = np.full(weight.shape[1], np.inf, np.float32)

    def run(self, first: Scales) -> Scales:
        best = Scales(first.scale.copy(), None if first.zero_point is None else first.zero_point.copy())
        for candidate in _candidates(first, self._form):
            self._try(candidate, best)
        if self._form.elements.whole:
            self._try(self._fitted(best), best)
        return best

    def _try(self, candidate: Scales, best: Scales) -> None:
        """Copy the candidate's scales to ``best`` for the outputs whose error they make smaller."""
        _, difference = rounded(self._weight, candidate, self._form)
        difference -= self._weight
        difference *= self._factor
        error = np.square(difference, out=difference).sum(axis=0)
        if self._form.shared_outputs > 1:
            error = _sums_of_blocks(error, self._form.shared_outputs)
        better = error < self._least
        np.copyto(self._least, error, where=better)
        np.copyto(best.scale, candidate.scale, where=better)
        if best.zero_point is not None and candidate.zero_point is not None:
            np.copyto(best.zero_point, candidate.zero_point, where=better)

    def _fitted(self, scales: Scales) -> Scales:
        """Return the scales with the least error for the integers that ``scales`` lead to."""
        numbers, _ = rounded(self._weight, scales, self._form)
        if scales.zero_point is not None:
            numbers -= scales.zero_point
        numbers *= self._factor
        squares, products = np.square(numbers).sum(axis=0), (numbers * (self._weight * self._factor)).sum(axis=0)
        fitted = np.divide(products, squares, out=scales.scale.astype(np.float32), where=squares > 0)
        return Scales(fitted.astype(scales.scale.dtype), scales.zero_point)


def _candidates(first: Scales, form: WeightFormat) -> Iterator[Scales]:
    """Yield the scales of rounding to nearest, then others."""
    wide, zero, bits = first.scale.astype(np.float32), first.zero_point, form.elements.bits
    for share in _shares(form):
        scale = (wide * np.float32(share)).astype(first.scale.dtype)
        for step in (0, -1, 1) if zero is not None and bits <= _MOVABLE_ZERO_BITS else (0,):
            yield Scales(scale, None if zero is None else np.clip(zero + step, 0, (1 << bits) - 1))


def _shares(form: WeightFormat) -> tuple[float, ...]:
    if form.elements.has_exponents:
        return _SHARES_OF_EXPONENTS
    if form.elements.bits == 8:
        return _SHARES_OF_BYTES
    signed = form.elements.whole and not form.zero_points  # a scale of the other sign has another largest number
    return (*_SHARES, *(-share for share in _SHARES)) if signed else _SHARES


def _sums_of_blocks(error: Array, outputs: int) -> Array:
    """The sum, for each output, over all of the consecutive ``outputs`` that share its scales."""
    starts = np.arange(0, len(error), outputs)
    return np.repeat(np.add.reduceat(error, starts), outputs)[: len(error)]
