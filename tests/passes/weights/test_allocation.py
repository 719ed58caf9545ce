"""Allocations against all that are possible."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from moec.passes.weights.allocation import _along_hulls, allocate


def tables(seed: int, items: int = 6, choices: int = 4) -> tuple[np.ndarray, np.ndarray, np.random.Generator]:
    random = np.random.default_rng(seed)
    costs = np.sort(random.integers(2, 9, (items, choices)), axis=1).astype(float)
    return -np.sort(-random.exponential(size=(items, choices)), axis=1), costs, random


def total(table: np.ndarray, chosen: np.ndarray) -> float:
    return float(table[np.arange(len(chosen)), chosen].sum())


@pytest.mark.parametrize("seed", range(40))
def test_no_other_choice_within_the_budget_is_better(seed):
    errors, costs, random = tables(seed)
    if seed % 3 == 0:
        errors[2, 0] = np.inf
    budget = random.uniform(costs[:, 1].sum(), 1.1 * costs.max(axis=1).sum())
    chosen = allocate(errors, costs, budget)
    everything = (np.array(one) for one in itertools.product(range(4), repeat=6))
    best = min(total(errors, one) for one in everything if total(costs, one) <= budget)
    assert total(costs, chosen) <= budget
    assert total(errors, chosen) == pytest.approx(best)


def test_of_many_items_the_hulls_find_what_is_best_but_for_a_step():
    errors, _, _ = tables(1, items=400)
    costs = np.tile([2.0, 3, 4, 8], (400, 1))
    for budget in (800, 1234, 2000, 3200):
        best, near = (total(errors, found(errors, costs, budget)) for found in (allocate, _along_hulls))
        assert best <= near <= best + errors.max(), budget


def test_costs_without_a_common_measure():
    errors, costs, _ = tables(2)
    chosen = allocate(errors, costs + 0.1234567, costs.sum(axis=0)[2])
    assert total(costs + 0.1234567, chosen) <= costs.sum(axis=0)[2]


def test_a_budget_below_the_cheapest_is_refused_with_what_they_cost():
    errors, costs, _ = tables(3)
    errors[0, 0] = np.inf
    least = costs[0, 1] + costs[1:, 0].sum()
    with pytest.raises(ValueError, match=f"^{least:g}$"):
        allocate(errors, costs, least - 1)
    assert total(costs, allocate(errors, costs, least)) == least


def test_a_choice_that_alone_costs_more_than_the_budget_is_not_taken():
    errors, costs = np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([[1.0, 8.0], [1.0, 2.0]])
    assert allocate(errors, costs, 5).tolist() == [0, 1]


def test_more_choices_than_a_byte_counts():
    errors, costs = np.arange(300.0)[::-1][None], np.arange(1.0, 301.0)[None]
    assert allocate(errors, costs, 290).tolist() == [289]
