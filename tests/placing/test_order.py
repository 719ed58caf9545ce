"""Ranks are renamed after the layer before, and nothing else changes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from moec.placing.order import aligned


def kept(slots, before, following) -> float:
    return sum(following[e, f] for here, there in zip(before, slots, strict=True) for e in here for f in there)


def test_successors_come_to_the_same_rank():
    following = np.zeros((4, 4))
    following[[0, 1, 2, 3], [2, 0, 3, 1]] = 5
    assert aligned([[0], [1], [2], [3]], [[0], [1], [2], [3]], following, 1) == [[2], [0], [3], [1]]


@pytest.mark.parametrize("seed", range(6))
def test_no_exchange_is_better(seed):
    random = np.random.default_rng(seed)
    following = random.integers(0, 9, (5, 5)).astype(float)
    before, slots = [[0], [1], [2], [3], [4]], [[4], [2], [3], [1], [0]]
    found = aligned(slots, before, following, 1)
    assert sorted(found) == sorted(slots)
    for first, second in itertools.combinations(range(5), 2):
        other = list(found)
        other[first], other[second] = other[second], other[first]
        assert kept(other, before, following) <= kept(found, before, following)


def test_nodes_stay_together():
    following = np.random.default_rng(1).integers(0, 9, (4, 4)).astype(float)
    slots = [[0], [1], [2], [3]]
    found = aligned(slots, slots, following, 2)
    assert {frozenset(rank[0] for rank in half) for half in (found[:2], found[2:])} == {
        frozenset({0, 1}),
        frozenset({2, 3}),
    }
