"""A single rank computes all of its pairs itself."""

from __future__ import annotations

import numpy as np
import pytest

from moec.runtime.ranks import OneRank


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("tokens", [0, 1, 5])
def test_results_come_back_in_order(tokens, weighted):
    generator = np.random.default_rng(tokens)
    rows, experts = generator.standard_normal((tokens, 4)), generator.integers(-1, 3, (tokens, 2)).astype(np.int32)
    weights = generator.random((tokens, 2)) if weighted else None
    ranks = OneRank()
    ranks.send(0, rows, experts, weights)
    received = ranks.receive(0)
    assert (received.weights is None) == (not weighted)
    results = ranks.give_back(0, received.rows * (received.experts[:, None] + 1))
    expected = np.where(experts < 0, 0, experts + 1)[:, :, None] * rows[:, None]
    assert np.array_equal(results, expected.reshape(-1, 4))
