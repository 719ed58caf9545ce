"""Rounding weights so that inputs make up for each other's errors (GPTQ, Frantar et al., arXiv 2210.17323).

Errors e [in] of one output's weights cost e^T H e, where H is the second moment of the inputs. With H = R R^T, R upper
triangular, that is the square of R^T e, whose element i holds e[0..i] alone. So inputs are rounded one after another:
each weight is first moved by what makes its element zero, given the errors before it, and then rounded. That is the
paper's algorithm without the inverse of H. Scales are found before (:mod:`moec.passes.weights.scale_search`), so that
inputs may come in the order of their size, the largest first, wherever their groups lie.

The first inputs were rounded before the errors of the last were known. So all are rounded again in turn, each to what
is best given all others (coordinate descent, QuantEase, arXiv 2309.01885), which never raises the cost: once, for that
takes as long as the rest, and another time gains half as much.
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
"""What is added to the diagonal of a moment, as a share of its mean: the paper's."""
_MOST_DAMPENING = 1e3


def gptq(weight: Array, form: WeightFormat, moment: Array) -> Encoded:
    """``weight`` [in,out] (float32) in a quantised format; ``moment`` [in,in]: the sum of x x^T over the inputs x, or
    any multiple of it.

    For no output is the error on these inputs larger than rounding to nearest with the same scales makes it. A moment
    of zeros stands for inputs that are not known. Raises ValueError as :func:`moec.ir.weights.encode.encode`, and for a
    moment that no inputs have.
    """
    importance = importance_of(moment)
    if not np.diagonal(moment).any():
        return nearest(weight, form, importance)
    scales = search_scales(weight, importance, form)
    moment = moment / np.diagonal(moment).mean(dtype=np.float64)
    order = np.argsort(-importance, kind="stable")
    each = scales.of_inputs(form, len(weight))
    rounding = _Rounding(weight[order], each.picked(order), form)
    ordered = moment[np.ix_(order, order)]
    rounding.in_turn(_factor(ordered))
    rounding.again((ordered + _DAMPENING * np.eye(len(order))).astype(np.float32))
    numbers, plain_decoded = rounded(weight, each, form)
    better = _costs(rounding.errors, ordered) <= _costs((weight - plain_decoded)[order], ordered)
    numbers[order] = np.where(better, rounding.numbers, numbers[order])
    return scales.stored_with(numbers, form)


def importance_of(moment: Array) -> Array:
    """What the square of an error of each input counts [in]: its mean square, and a little for inputs that were zero,
    as a share of the mean; ones for a moment of zeros. Raises ValueError for what is no moment."""
    squares = np.diagonal(moment).astype(np.float64)
    if not np.isfinite(moment).all() or squares.min(initial=0) < 0:
        raise ValueError("the second moment of its inputs is negative or not finite")
    return squares / squares.mean() + _DAMPENING if squares.any() else np.ones(len(squares))


class _Rounding:
    """A weight [in,out] whose inputs are rounded in turn, all outputs at once; scales are those of each input.

    ``numbers``: those rounded to; ``errors``: the weight without what these stand for.
    """

    def __init__(self, weight: Array, scales: Scales, form: WeightFormat) -> None:
        self._weight, self._scales, self._form = weight, scales, form
        self.numbers, self.errors = np.zeros_like(weight), np.zeros_like(weight)

    def in_turn(self, factor: Array) -> None:
        """From the first to the last; ``factor``: R."""
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
        """Each to what is best given all others; ``moment``: H in float32."""
        pulls = product(moment, self.errors)
        for start in range(0, len(self._weight), TILE):
            inputs = slice(start, start + TILE)
            before, pull, near = self.errors[inputs].copy(), pulls[inputs].copy(), moment[inputs, inputs]
            for place in range(len(pull)):
                one = start + place
                self._round(one, self._weight[one] - self.errors[one] + pull[place] / near[place, place])
                pull[place + 1 :] += near[place + 1 :, place, None] * (self.errors[one] - before[place])
            pulls += product(moment[:, inputs], self.errors[inputs] - before)

    def _round(self, one: int, target: Array) -> Array:
        """Give an input the numbers nearest to a target [out]; return what they stand for."""
        self.numbers[one], decoded = rounded(target, self._scales.picked(one), self._form)
        self.errors[one] = self._weight[one] - decoded
        return decoded


def _factor(moment: Array) -> Array:
    """The upper triangular R with R R^T = ``moment``, dampened as far as needed."""
    dampening = _DAMPENING
    while dampening <= _MOST_DAMPENING:
        dampened = moment + dampening * np.eye(len(moment))
        try:
            return lower_factor(dampened[::-1, ::-1])[::-1, ::-1]
        except np.linalg.LinAlgError:
            dampening *= 10
    raise ValueError("the second moment of its inputs has negative eigenvalues, which that of no inputs has")


def _costs(errors: Array, moment: Array) -> Array:
    """What the errors [in,out] of each output cost: e^T H e."""
    return (errors * product(moment.astype(np.float32), errors)).sum(axis=0, dtype=np.float64)
