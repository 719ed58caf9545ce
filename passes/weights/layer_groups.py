"""Selection of formats with one size of groups for all weights of a layer: kernels sum up one size in a layer.

Formats without groups (int8) go with any size. The size of each layer follows from a price of memory: it is the one
with which the layer's errors, plus the price times its costs, are least. Bisection finds the price at which that fits
the budget (Lagrange multipliers; Everett, 1963, "Generalized Lagrange multiplier method", Operations Research 11(3)).
With the sizes on both sides of it, the cheapest ones, and each size for all layers, formats are selected for every
item, and the selection with the least error is taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from moec.ir.weights.format import WeightFormat
from moec.passes.weights.allocation import allocate

Array = np.ndarray[Any, Any]

_STEPS = 60
_FAR = 1e15
"""Factor between the price that is tried first and the highest and lowest ones."""


def allocate_by_layer(
    errors: Array, costs: Array, budget: float, layers: Sequence[int], forms: Sequence[WeightFormat]
) -> Array:
    """Select a format [N] for each item like :func:`~moec.passes.weights.allocation.allocate`. ``layers``: the number
    of the layer of each item."""
    sizes = sorted({form.group for form in forms if form.group})
    if len(sizes) < 2:
        return allocate(errors, costs, budget)
    allowed = np.array([[form.group in (0, size) for form in forms] for size in sizes])
    choices = _Choices(errors, costs, np.asarray(layers), allowed)
    selections = []
    for of_layers in {tuple(of_layers.tolist()): of_layers for of_layers in choices.candidates(budget)}.values():
        masked = np.where(allowed[of_layers][choices.layers], errors, np.inf)
        try:
            chosen = allocate(masked, costs, budget)
        except ValueError:
            if not selections:  # the cheapest sizes, which come first
                raise
            continue
        selections.append((float(masked[np.arange(len(chosen)), chosen].sum()), chosen))
    return min(selections, key=lambda selection: selection[0])[1]


class _Choices:
    """Items with their errors and costs [N, formats], and formats [sizes, formats] that go with each size of groups."""

    def __init__(self, errors: Array, costs: Array, layers: Array, allowed: Array) -> None:
        self.layers = np.unique(layers, return_inverse=True)[1]
        self._errors = np.where(np.isfinite(errors), errors, np.inf)
        self._costs, self._allowed = costs, allowed

    def candidates(self, budget: float) -> Iterator[Array]:
        """Iterate over sizes of groups of layers, by their positions: the cheapest first."""
        yield self._best(np.where(np.isfinite(self._errors), self._costs, np.inf))[0]
        for position in range(len(self._allowed)):
            yield np.full(self.layers.max() + 1, position)
        finite = self._errors[np.isfinite(self._errors)]
        middle = max(float(finite.max(initial=0)), 1e-300) / float(self._costs.max())
        low, high = middle / _FAR, middle * _FAR
        for _ in range(_STEPS):
            price = float(np.sqrt(low) * np.sqrt(high))
            if self._best(self._errors + price * self._costs)[1] > budget:
                low = price
            else:
                high = price
        for price in (high, low):
            yield self._best(self._errors + price * self._costs)[0]

    def _best(self, values: Array) -> tuple[Array, float]:
        """The size of each layer with the least sum of its items' least values, and what these items cost."""
        by_size = np.where(self._allowed[:, None], values, np.inf)
        formats = by_size.argmin(axis=2)
        items = np.arange(len(values))
        sums = np.array(
            [np.bincount(self.layers, own[items, chosen]) for own, chosen in zip(by_size, formats, strict=True)]
        )
        sizes = sums.argmin(axis=0)
        return sizes, float(self._costs[items, formats[sizes[self.layers], items]].sum())
