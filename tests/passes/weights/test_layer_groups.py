"""Selections with one size of groups in each layer against all that are possible."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from moec.ir.weights.format import WeightFormat
from moec.passes.weights.allocation import allocate
from moec.passes.weights.layer_groups import allocate_by_layer

FORMS = [WeightFormat.parse(text) for text in ("int8", "int4/32", "int4/64", "int2/32", "int2/64z")]
COSTS = np.array([16.0, 9, 8, 5, 4])
LAYERS = [7, 7, 7, 3, 3]
SIZES = (32, 64)


def errors_of(seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    scale = random.exponential(size=(len(LAYERS), 1)) * random.uniform(0.2, 3, (len(LAYERS), len(FORMS)))
    return scale * np.array([0.1, 1, 1.5, 8, 10])


def best_of(errors: np.ndarray, costs: np.ndarray, budget: float) -> float:
    """The least error of all pairs of sizes, each with its best selection."""
    totals = []
    for of_layers in itertools.product(SIZES, repeat=2):
        size = dict(zip((7, 3), of_layers, strict=True))
        allowed = np.array([[form.group in (0, size[layer]) for form in FORMS] for layer in LAYERS])
        masked = np.where(allowed, errors, np.inf)
        try:
            chosen = allocate(masked, costs, budget)
        except ValueError:
            continue
        totals.append(masked[np.arange(len(LAYERS)), chosen].sum())
    return min(totals)


@pytest.mark.parametrize("seed", range(30))
def test_layers_have_one_size_and_no_single_size_is_better(seed):
    errors, costs = errors_of(seed), np.tile(COSTS, (len(LAYERS), 1))
    if seed % 5 == 0:
        errors[1, 1], errors[3, 4] = np.inf, np.nan
    budget = float(np.random.default_rng(seed).uniform(22, 80))
    chosen = allocate_by_layer(errors, costs, budget, LAYERS, FORMS)
    items = np.arange(len(LAYERS))
    assert costs[items, chosen].sum() <= budget
    for layer in set(LAYERS):
        own = {FORMS[form].group for form, its in zip(chosen, LAYERS, strict=True) if its == layer}
        assert len(own - {0}) <= 1
    total = errors[items, chosen].sum()
    assert np.isfinite(total) and total <= 1.25 * best_of(errors, costs, budget) + 1e-9
    for size in SIZES:
        columns = [at for at, form in enumerate(FORMS) if form.group in (0, size)]
        try:
            single = allocate(errors[:, columns], costs[:, columns], budget)
        except ValueError:
            continue
        assert total <= errors[:, columns][items, single].sum() + 1e-9


def test_formats_of_one_size_are_selected_as_without_layers():
    errors, costs = errors_of(1)[:, [0, 1, 3]], np.tile(COSTS[[0, 1, 3]], (len(LAYERS), 1))
    forms = [FORMS[at] for at in (0, 1, 3)]
    for budget in (26.0, 40.0, 60.0):
        expected = allocate(errors, costs, budget)
        np.testing.assert_array_equal(allocate_by_layer(errors, costs, budget, LAYERS, forms), expected)


def test_a_budget_below_the_cheapest_sizes_is_refused_with_what_they_cost():
    errors, costs = errors_of(2), np.tile(COSTS, (len(LAYERS), 1))
    errors[0, 2] = errors[0, 4] = np.inf  # this item has no groups of 64, so its layer costs 5 each in groups of 32
    least = 3 * 5 + 2 * 4
    with pytest.raises(ValueError, match=f"^{least}$"):
        allocate_by_layer(errors, costs, least - 1, LAYERS, FORMS)
    chosen = allocate_by_layer(errors, costs, least, LAYERS, FORMS)
    assert chosen.tolist() == [3, 3, 3, 4, 4]
