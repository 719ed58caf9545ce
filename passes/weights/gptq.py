"""Rounding weights so that inputs make up for each other's errors (GPTQ, Frantar et al., arXiv 2210.17323).

Errors e [in] of one output's weights cost e^T H e, where H is the second moment of the inputs. With H = R R^T, R upper
triangular, that is the square of R^T e, whose element i holds e[0..i] alone. So inputs are rounded one after another:
each weight is first moved by what makes its element zero, given the errors before it, and then rounded. That is the
paper's algorithm without the inverse of H. Scales are found before (:mod:`moec.passes.weights.scale_search`), so that
inputs may come in the order of their size, the largest first, wherever their groups lie.

The first inputs were rounded before the errors of the last were known. So all are rounded again in turn, each to what
is best given all others (coordinate descent, QuantEase, arXiv 2309.01885), which never raises the cost. Integers that
were moved so far want other scales: each group's is fitted, in turn, to what costs least given all others, and the
inputs are rounded once more.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from moec.ir.weights.encode import Encoded
from moec.ir.weights.format import WeightFormat
from moec.passes.weights.scale_search import Scales, nearest, rounded, search_scales
from moec.passes.weights.tiles import TILE, lower_factor, product

Array = np.ndarray[Any, Any]

_DAMPENING = 0.01
"""Share of the mean of a moment's diagonal that is added to the diagonal: the paper's."""
_MOST_DAMPENING = 1e3
_FITS = 2
"""Number of times that scales are fitted to the numbers rounded with them. Each takes as long as rounding once; the
second gains half as much as the first."""


def gptq(weight: Array, form: WeightFormat, moment: Array) -> Encoded:
    """Quantise ``weight`` [in,out] (float32). ``moment`` [in,in] is the sum of x x^T over the inputs x, or any multiple
    of it; zeros mean that the inputs are not known.

    No output's error on these inputs is larger than rounding to nearest with the same scales makes it. Raises
    ValueError as :func:`moec.ir.weights.encode.encode` does, and for a matrix that is no second moment.
    """
    importance = importance_of(moment)
    if not np.diagonal(moment).any():
        return nearest(weight, form, importance)
    scales = search_scales(weight, importance, form)
    moment = moment / np.diagonal(moment).mean(dtype=np.float64)
    order = np.argsort(-importance, kind="stable")
    each = scales.of_inputs(form, len(weight))
    rounding = _GptqRounding(weight[order], each.picked(order), form)
    ordered = moment[np.ix_(order, order)]
    dampened = (ordered + _DAMPENING * np.eye(len(order))).astype(np.float32)
    rounding.in_turn(_factor(ordered))
    rounding.again(dampened)
    groups = np.arange(len(weight)) // (form.group or max(1, len(weight)))
    fitted = Scales(scales.scale.copy(), scales.zero_point)
    for _ in range(_FITS if form.elements.whole else 0):
        rounding.fit(fitted.scale, groups[order], dampened)
        rounding.again(dampened)
    numbers, plain_decoded = rounded(weight, each, form)
    better = _costs(rounding.errors, ordered) <= _costs((weight - plain_decoded)[order], ordered)
    numbers[order] = np.where(better, rounding.numbers, numbers[order])
    return Scales(np.where(better, fitted.scale, scales.scale), scales.zero_point).stored_with(numbers, form)


def importance_of(moment: Array) -> Array:
    """Return how much the squared error of each input counts [in]: the input's mean square, as a share of the mean of
    all, plus a little for inputs that were always zero. For a moment of zeros these are ones. Raises ValueError for a
    matrix that is no second moment."""
    squares = np.diagonal(moment).astype(np.float64)
    if not np.isfinite(moment).all() or squares.min(initial=0) < 0:
        raise ValueError("the second moment of its inputs is negative or not finite")
    return squares / squares.mean() + _DAMPENING if squares.any() else np.ones(len(squares))


class _GptqRounding:
    """Rounds a weight [in,out] one input after another, all outputs at once. ``scales`` has an entry for each input.

    ``numbers`` holds the rounded numbers, ``errors`` the weight minus their values.
    """

    def __init__(self, weight: Array, scales: Scales, form: WeightFormat) -> None:
        self._weight, self._scales, self._form = weight, scales, form
        self.numbers, self.errors = np.zeros_like(weight), np.zeros_like(weight)

    def in_turn(self, factor: Array) -> None:
        """Round all inputs from the first to the last; ``factor`` is R."""
        narrow = factor.astype(np.float32)
        for start in range(0, len(self._weight), TILE):
            inputs = slice(start, start + TILE)
            inverse = np.linalg.inv(factor[inputs, inputs]).astype(np.float32)
            targets = product(inverse.T, product(narrow[:start, inputs].T, self.errors[:start]))
            targets += self._weight[inputs]
            for place, target in enumerate(targets):
                missing = (target - self._round(start + place, target)) / inverse[place, place]
                targets[place + 1 :] -= inverse[place, place + 1 :, None] * missing

    def again(self, moment: Array) -> None:
        """Round every input to the best number given all others; ``moment`` is H in float32."""
        pulls = product(moment, self.errors)
        for start in range(0, len(self._weight), TILE):
            inputs = slice(start, start + TILE)
            before, pull, near = self.errors[inputs].copy(), pulls[inputs].copy(), moment[inputs, inputs]
            for place in range(len(pull)):
                row = start + place
                self._round(row, self._weight[row] - self.errors[row] + pull[place] / near[place, place])
                pull[place + 1 :] += near[place + 1 :, place, None] * (self.errors[row] - before[place])
            pulls += product(moment[:, inputs], self.errors[inputs] - before)

    def fit(self, scale: Array, groups: Array, moment: Array) -> None:
        """Give every group the scale that is best for its numbers given all others. ``scale`` [groups,out] is changed
        in place; ``groups`` [in] says which one an input has; ``moment`` is H in float32."""
        each, zero = self._scales
        pulls = product(moment, self.errors)
        for group, entry in enumerate(scale):
            inputs = np.flatnonzero(groups == group)
            numbers = self.numbers[inputs] if zero is None else self.numbers[inputs] - zero[inputs]
            weighted = product(moment[:, inputs], numbers)
            squares, wish = (numbers * weighted[inputs]).sum(axis=0), (numbers * pulls[inputs]).sum(axis=0)
            old = entry.astype(np.float32)
            with np.errstate(over="ignore"):
                new = (old + np.divide(wish, squares, out=np.zeros_like(old), where=squares > 0)).astype(scale.dtype)
            usable = np.isfinite(new) & (new != 0)
            scale[group] = np.where(usable, new, entry)
            change = scale[group].astype(np.float32) - old
            each[inputs] += change
            self.errors[inputs] -= numbers * change
            pulls -= weighted * change

    def _round(self, row: int, target: Array) -> Array:
        """Round the weights of one input to the numbers nearest to ``target`` [out]; return their values."""
        self.numbers[row], decoded = rounded(target, self._scales.picked(row), self._form)
        self.errors[row] = self._weight[row] - decoded
        return decoded


def _factor(moment: Array) -> Array:
    """Return the upper triangular R with R R^T = ``moment``; the moment is dampened as far as that needs."""
    dampening = _DAMPENING
    while dampening <= _MOST_DAMPENING:
        dampened = moment + dampening * np.eye(len(moment))
        try:
            return lower_factor(dampened[::-1, ::-1])[::-1, ::-1]
        except np.linalg.LinAlgError:
            dampening *= 10
    raise ValueError("the second moment of its inputs has negative eigenvalues, which that of no inputs has")


def _costs(errors: Array, moment: Array) -> Array:
    """The costs e^T H e of the errors [in,out] for each output [out]."""
    return (errors * product(moment.astype(np.float32), errors)).sum(axis=0, dtype=np.float64)
