"""Owners of hidden units: the expert that each belongs to, by its contribution to that expert's result."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from moec.passes.raising.dataflow import Array
from moec.passes.raising.failure import NotUnderstoodError

TOLERANCE = 1e-6
AT_ONCE = 24
"""Units that one evaluation separates: each gets a power of two, so that a sum shows which units an expert has."""
MOST_ASKED = 64 * AT_ONCE


def find_owners(results: Callable[[Array], Array], count: int, E: int) -> Array:
    """The expert [count] of each hidden unit. ``results`` maps values of the units [count] to their sums [E] by expert;
    all experts have equally many units.

    Raises NotUnderstoodError if the units of an expert lie in too many places.
    """
    marks = np.random.default_rng(0).normal(size=count)
    sums = results(marks)
    for owners in _guesses(_Asked(results, count), marks, sums):
        if np.abs(np.bincount(owners, marks, E) - sums).max() <= TOLERANCE * count and _evenly(owners, E):
            return owners
    raise NotUnderstoodError("it does not show which hidden unit belongs to which expert")


def _evenly(owners: Array, E: int) -> bool:
    return bool((np.bincount(owners, minlength=E) == len(owners) // E).all())


def _guesses(asked: _Asked, marks: Array, sums: Array) -> Iterator[Array]:
    """Guesses: experts one after another, or in turns with some units each; then runs of units with both ends in one
    expert."""
    count, E = len(marks), len(sums)
    f = count // E
    sizes = [size for size in range(f, 0, -1) if f % size == 0]
    for size in sizes:
        turns = np.arange(count) // size % E
        same = np.abs(sums[:, None] - np.bincount(turns, marks, E)) <= TOLERANCE * f
        if (same.sum(axis=0) == 1).all():
            yield same.argmax(axis=0)[turns]
    size = f
    while size:
        yield asked.by_halving(size)
        size //= 2


class _Asked:
    """Units with known experts."""

    def __init__(self, results: Callable[[Array], Array], count: int) -> None:
        self._results, self._owners = results, np.full(count, -1)

    def by_halving(self, size: int) -> Array:
        """The experts of all units; a run of at most ``size`` units counts as one expert's if both its ends do."""
        count = len(self._owners)
        owners = np.zeros(count, np.int64)
        runs = [(first, min(first + size, count) - 1) for first in range(0, count, size)]
        while runs:
            self._ask({unit for run in runs for unit in run})
            apart = []
            for first, last in runs:
                owners[first : last + 1] = self._owners[first]
                if self._owners[first] != self._owners[last]:
                    middle = (first + last) // 2
                    apart += [(first, middle), (middle + 1, last)]
            runs = apart
        return owners

    def _ask(self, units: set[int]) -> None:
        asked = np.array(sorted(unit for unit in units if self._owners[unit] < 0))
        if (self._owners >= 0).sum() + len(asked) > MOST_ASKED:
            raise NotUnderstoodError("the hidden units of an expert lie in too many places")
        for start in range(0, len(asked), AT_ONCE):
            some = asked[start : start + AT_ONCE]
            values = np.zeros(len(self._owners))
            values[some] = 2.0 ** np.arange(len(some))
            bits = np.rint(self._results(values)).astype(np.int64)[:, None] >> np.arange(len(some)) & 1
            if (bits.sum(axis=0) != 1).any():
                raise NotUnderstoodError("it does not show which hidden unit belongs to which expert")
            self._owners[some] = bits.argmax(axis=0)
