"""Tokens that draw experts at random, against all draws, and against tokens drawn by a generator."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from moec.targets.cuda.estimates.draws import Draws


@pytest.mark.parametrize(
    ("tokens", "slots", "experts", "rows"), [(1, 2, 4, 1), (3, 1, 3, 2), (4, 2, 3, 2), (2, 3, 3, 4)]
)
def test_expectations_are_those_of_all_draws(tokens, slots, experts, rows):
    choices = list(itertools.combinations(range(experts), slots))
    loads = [np.bincount(np.ravel(draw), minlength=experts) for draw in itertools.product(choices, repeat=tokens)]
    draws = Draws(tokens, slots, experts)
    assert draws.pairs == tokens * slots
    assert draws.used == pytest.approx(np.mean([np.count_nonzero(load) for load in loads]))
    assert draws.blocks(rows) == pytest.approx(np.mean([np.ceil(load / rows).sum() for load in loads]))


def test_qwen3s_experts():
    """128 experts, eight per token: 16 tokens need 82 of them, and 4,096 fill a quarter more blocks than evenly."""
    assert Draws(16, 8, 128).used == pytest.approx(82.4, abs=0.1)
    random = np.random.default_rng(0)
    loads = np.bincount(np.argsort(random.random((4096, 128)), axis=1)[:, :8].ravel(), minlength=128)
    drawn, even = Draws(4096, 8, 128).blocks(128), 128 * math.ceil(4096 * 8 / 128 / 128)
    assert drawn == pytest.approx(np.ceil(loads / 128).sum(), rel=0.05)
    assert (round(drawn), even) == (318, 256)
