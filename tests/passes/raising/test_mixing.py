"""The fit that tells experts apart: made once, and the same as numpy's."""

from __future__ import annotations

import numpy as np

from moec.common.budgets import PROBED_MIXTURES
from moec.passes.raising.mixing import _LeastSquares


def test_the_fit_is_that_of_least_squares():
    random = np.random.default_rng(0)
    weights, y = random.normal(size=(20, 5)), random.normal(size=(20, 3))
    squares = _LeastSquares.of(weights)
    assert squares.rank == 5
    np.testing.assert_allclose(squares.inverse @ y, np.linalg.lstsq(weights, y, rcond=None)[0], atol=1e-12)


def test_experts_of_equal_weights_cannot_be_told_apart():
    weights = np.random.default_rng(0).normal(size=(20, 5))
    weights[:, 4] = weights[:, 1]
    squares, y = _LeastSquares.of(weights), np.ones((20, 1))
    assert squares.rank == 4
    np.testing.assert_allclose(squares.inverse @ y, np.linalg.lstsq(weights, y, rcond=None)[0], atol=1e-12)


def test_the_budget_has_room_for_1000_experts_and_not_for_4096_pairs():
    assert PROBED_MIXTURES.allows((4 * 1000 + 16) * 1000**2)
    assert not PROBED_MIXTURES.allows(18432 * 4096**2)
