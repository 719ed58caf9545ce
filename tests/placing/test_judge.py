"""Estimates of loads equal exact counts where tokens are many, and counts of traces are those of the definition."""

from __future__ import annotations

import numpy as np
import pytest

from moec.placing.judge import (
    following_of,
    holding,
    imbalance,
    judge,
    pairs_of,
    rank_loads,
    shares,
)
from moec.placing.placement import ExpertPlacement, LayerPlacement

from .traces import zipf_trace

LAYER = LayerPlacement("a", 5, ((0, 1), (1, 2), (1, 3, 0), (4,)))


@pytest.mark.parametrize("nodes", [1, 2, 4])
def test_shares_are_what_programs_do(nodes):
    tokens = 12  # every number of candidates divides it
    for expert, row in enumerate(shares(holding(LAYER), nodes)):
        counts = np.zeros(4)
        for rank in range(4):
            counts += np.bincount(LAYER.destinations(np.full((tokens, 1), expert), rank, nodes)[:, 0], minlength=4)
        assert row == pytest.approx(counts / counts.sum())


def test_rank_loads_keep_the_sum():
    loads = np.array([[1.0, 2, 3, 4, 5], [5, 0, 0, 0, 1]])
    assert rank_loads(LAYER, loads, 2).sum(axis=1) == pytest.approx([15, 6])
    assert rank_loads(LAYER, np.array([0, 0, 0, 8.0, 0])).tolist() == [0, 0, 8, 0]


def test_imbalance_is_a_mean_over_windows():
    assert imbalance(np.array([1, 1, 4])) == 2
    assert imbalance(np.array([[1, 1, 4], [2, 2, 2], [0, 0, 0]])) == pytest.approx(4 / 3)


def test_pairs_and_successors_are_counted():
    trace, after = np.array([[0, 1], [1, 2], [-1, 1]]), np.array([[0], [1], [1]])
    assert pairs_of(trace, 3).tolist() == [[1, 1, 0], [1, 3, 1], [0, 1, 1]]
    assert following_of(trace, after, 3, 2).tolist() == [[1, 0], [1, 2], [0, 1]]


def test_a_trace_is_judged_by_its_definition():
    layer = LayerPlacement("a", 4, ((0,), (1,), (2,), (3,)))
    trace = np.array([[0, 1, 0], [0, 3, -1], [2, 2, 2], [9, -1, 0]])  # a token of each rank
    (judged,) = judge(ExpertPlacement(4, (layer,), 2), [trace])
    # on ranks: [0 1 0], [0 3], [2 2 2], [0]; on nodes: [0 0 0], [0 1], [1 1 1], [0]
    assert judged.imbalance == pytest.approx(4 / (9 / 4))
    assert judged.crossing == pytest.approx(3 / 7) and judged.crossing_nodes == pytest.approx(1 / 7)
    assert judged.sent == pytest.approx((1 + 2 + 0 + 1) / 4)
    assert judged.sent_nodes == pytest.approx((0 + 1 + 0 + 1) / 4)


def test_no_token_is_judged():
    (judged,) = judge(ExpertPlacement(4, (LAYER,)), [np.zeros((0, 2), np.int32)], 2)
    assert (judged.imbalance, judged.crossing, judged.sent) == (1, 0, 0)


def test_zipf_traces_drift():
    still, moving = (zipf_trace(4000, 16, 2, seed=1, exponent=1.5, drift=drift) for drift in (0.0, 0.5))
    assert (still[:, 0] != still[:, 1]).all()

    def hottest(trace: np.ndarray) -> list[int]:
        return [int(np.bincount(half.ravel(), minlength=16).argmax()) for half in (trace[:500], trace[-500:])]

    assert hottest(still)[0] == hottest(still)[1] == hottest(moving)[0] != hottest(moving)[1]
    loads = np.sort(np.bincount(still[:, 0], minlength=16))[::-1]
    assert loads[0] > 2 * loads[1] > 2 * loads[4]
