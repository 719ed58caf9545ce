"""Selection of one of several options for each of many items, with the least error within a budget.

The multiple-choice knapsack problem: minimise sum errors[i, choice_i] subject to sum costs[i, choice_i] <= budget.

If costs have a common measure and there are not too many items, dynamic programming over the amount spent finds the
optimum. Otherwise only the choices of each item on the lower convex hull of (cost, error) are considered. Steps along
the hulls are taken in the order of the error that they save per cost, which is the optimum of the linear relaxation
(Sinha and Zoltners, 1979, "The multiple-choice knapsack problem", Operations Research 27(3)). The rest of the budget
goes to the steps that still fit. The result exceeds the optimum by less than the error that the first step that did not
fit would have saved: with thousands of items, next to nothing.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]


_EXACT = 1 << 28
"""Largest product of choices and amounts to spend for which all are tried; that takes seconds."""


class _HullStep(NamedTuple):
    """A step from one choice of an item to the next dearer one on its hull. Steps sort in the order in which they are
    taken."""

    rate: float
    item: int
    position: int
    choice: int
    cost: float


def allocate(errors: Array, costs: Array, budget: float) -> Array:
    """Select a choice [N] for each item. ``errors`` and ``costs`` are [N,C]; an infinite error or NaN rules a choice
    out.

    Raises ValueError if even the cheapest choices cost more than the budget; the message is their cost.
    """
    least = float(np.where(np.isfinite(errors), costs, np.inf).min(axis=1).sum())
    if least > budget * (1 + 1e-9):
        raise ValueError(f"{least:.15g}")
    measure = float(np.gcd.reduce(costs.astype(np.int64), axis=None)) if np.array_equal(costs, np.rint(costs)) else 0.0
    most = min(budget, float(costs.max(axis=1).sum()))
    if measure and errors.size * (most / measure + 1) <= _EXACT:
        return _exact(errors, np.rint(costs / measure).astype(np.int64), int(most / measure + 1e-9))
    return _along_hulls(errors, costs, budget)


def _exact(errors: Array, costs: Array, budget: int) -> Array:
    """Optimum by dynamic programming: ``best[b]`` is the least error of the items so far that together cost at most
    b."""
    best = np.zeros(budget + 1)
    taken = np.zeros((len(errors), budget + 1), np.min_scalar_type(errors.shape[1]))
    for item, (error, cost) in enumerate(zip(errors, costs, strict=True)):
        before, best = best, np.full(budget + 1, np.inf)
        for choice in np.flatnonzero(cost <= budget):
            with_it = np.full(budget + 1, np.inf)
            with_it[cost[choice] :] = before[: budget + 1 - cost[choice]] + error[choice]
            better = with_it < best
            best[better], taken[item, better] = with_it[better], choice
    chosen, left = np.zeros(len(errors), np.int64), budget
    for item in reversed(range(len(errors))):
        chosen[item] = taken[item, left]
        left -= int(costs[item, chosen[item]])
    return chosen


def _along_hulls(errors: Array, costs: Array, budget: float) -> Array:
    hulls = [_hull(error, cost) for error, cost in zip(errors, costs, strict=True)]
    chosen = np.array([hull[0] for hull in hulls], np.int64)
    spent = float(costs[np.arange(len(chosen)), chosen].sum())
    stopped = np.zeros(len(chosen), bool)
    for step in sorted(step for item, hull in enumerate(hulls) for step in _steps(item, hull, errors, costs)):
        stopped[step.item] |= spent + step.cost > budget * (1 + 1e-9)
        if not stopped[step.item]:
            chosen[step.item] = step.choice
            spent += step.cost
    return chosen


def _hull(errors: Array, costs: Array) -> list[int]:
    """The choices on the lower convex hull, from cheap to dear; each has a smaller error than the one before."""
    hull: list[int] = []
    for choice in sorted(range(len(errors)), key=lambda choice: (costs[choice], errors[choice])):
        if not np.isfinite(errors[choice]) or (hull and errors[choice] >= errors[hull[-1]]):
            continue
        while len(hull) > 1 and _rate(hull[-2], hull[-1], errors, costs) >= _rate(hull[-1], choice, errors, costs):
            hull.pop()
        hull.append(choice)
    if not hull:
        raise ValueError("no choice has a finite error")
    return hull


def _rate(first: int, second: int, errors: Array, costs: Array) -> float:
    """Change of the error per cost; the more negative, the better."""
    return float((errors[second] - errors[first]) / (costs[second] - costs[first]))


def _steps(item: int, hull: list[int], errors: Array, costs: Array) -> list[_HullStep]:
    pairs = itertools.pairwise(hull)
    return [
        _HullStep(
            _rate(first, second, errors[item], costs[item]),
            item,
            position,
            second,
            float(costs[item, second] - costs[item, first]),
        )
        for position, (first, second) in enumerate(pairs)
    ]
