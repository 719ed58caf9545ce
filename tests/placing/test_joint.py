"""The joint method is better than EPLB where EPLB is not the best, and never worse on what it was given."""

from __future__ import annotations

import numpy as np
import pytest

from moec.placing.judge import following_of, imbalance, judge, pairs_of, rank_loads
from moec.placing.place import place
from moec.placing.placement import ExpertPlacement

from .test_eplb import UNEVEN
from .traces import zipf_trace

POPULARITY = 1 / np.arange(3, 19) / np.sum(1 / np.arange(3, 19))


def clustered(tokens: int, seed: int) -> np.ndarray:
    """Make a trace of 16 experts in which experts 4 apart are selected together in four of five tokens."""
    random = np.random.default_rng(seed)
    first = random.choice(16, tokens, p=POPULARITY)
    second = np.where(
        random.random(tokens) < 0.8, first + 4 * random.integers(1, 4, tokens), random.integers(0, 16, tokens)
    )
    return np.stack([first, np.where(second % 16 == first, (first + 1) % 16, second % 16)], 1).astype(np.int32)


def counted(trace: np.ndarray, experts: int, windows: int = 1) -> np.ndarray:
    return np.stack([np.bincount(part.ravel(), minlength=experts) for part in np.array_split(trace, windows)])


def imbalances(placement: ExpertPlacement, loads: list[np.ndarray]) -> list[float]:
    return [
        imbalance(rank_loads(layer, rows, placement.nodes)) for layer, rows in zip(placement.layers, loads, strict=True)
    ]


def test_the_example_of_another_balancer():
    (layer,) = place(UNEVEN[None], 8, replicas=8, method="joint").layers
    assert [len(slots) for slots in layer.slots] == [2] * 8
    assert rank_loads(layer, UNEVEN).max() <= 200


def test_pairs_that_cross_ranks_get_fewer_and_balance_stays():
    half, other = clustered(6000, 1), clustered(6000, 2)
    loads, pairs = [counted(half, 16)], [pairs_of(half, 16)]
    placements = {
        method: place(loads, 4, 1, replicas, pairs, method=method)
        for method, replicas in (("linear", 0), ("eplb", 6), ("joint", 6))
    }
    crossing = {method: judge(placement, [other])[0].crossing for method, placement in placements.items()}
    assert crossing["joint"] < 0.6 * min(crossing["linear"], crossing["eplb"])
    held_out = [counted(other, 16)]
    assert imbalances(placements["joint"], held_out) <= imbalances(placements["eplb"], held_out)


def test_slack_gives_balance_for_pairs():
    """EPLB balances this trace to within the noise of its counts, so that nothing is changed without slack."""
    half, other = clustered(6000, 1), clustered(6000, 2)
    given = ([counted(half, 16)], 4, 1, 8, [pairs_of(half, 16)])
    eplb, strict, loose = place(*given, method="eplb"), place(*given), place(*given, slack=0.02)
    held_out = [counted(other, 16)]
    assert imbalances(strict, held_out) == pytest.approx(imbalances(eplb, held_out))
    assert judge(loose, [other])[0].crossing < 0.7 * judge(strict, [other])[0].crossing
    assert imbalances(loose, given[0])[0] <= imbalances(eplb, given[0])[0] + 0.02


@pytest.mark.parametrize(("nodes", "replicas", "groups"), [(1, 3, 1), (2, 6, 1), (2, 4, 4)])
def test_it_is_never_worse_than_eplb(nodes, replicas, groups):
    traces = [zipf_trace(2000, 16, 2, seed=seed, exponent=0.3 * seed, drift=0.2) for seed in (1, 4)]
    loads = [counted(trace, 16, 3) for trace in traces]
    pairs = [pairs_of(trace, 16) for trace in traces]
    eplb, joint = (
        place(loads, 4, nodes, replicas, pairs, method=method, groups=groups) for method in ("eplb", "joint")
    )
    for mine, theirs in zip(imbalances(joint, loads), imbalances(eplb, loads), strict=True):
        assert mine <= theirs + 1e-6
    for layer in joint.layers:
        assert max(map(len, layer.slots)) == -(-(16 + replicas) // 4)
        if groups > 1:
            on_nodes = [
                {expert // 4 for slots in half for expert in slots} for half in (layer.slots[:2], layer.slots[2:])
            ]
            assert not on_nodes[0] & on_nodes[1]


def test_consecutive_layers_lie_together():
    trace = zipf_trace(1500, 8, 1, seed=0, exponent=0.2)
    after = 7 - trace
    following = [following_of(trace, after, 8, 8), None]
    loads = [counted(trace, 8), np.ones((1, 8))]

    def kept(placement: ExpertPlacement) -> float:
        first, second = (layer.holders() for layer in placement.layers)
        return float(np.mean([first[expert] == second[7 - expert] for expert in trace[:, 0]]))

    assert kept(place(loads, 4, following=following)) > 2 * kept(place(loads, 4))


def test_the_same_loads_make_the_same_placement():
    trace = clustered(1000, 5)
    given = ([counted(trace, 16)], 4, 2, 5, [pairs_of(trace, 16)])
    assert place(*given) == place(*given)


@pytest.mark.nightly
def test_a_large_model_is_planned_within_its_budget():
    """58 layers of 256 experts on 64 ranks; the time itself is in benchmarks/results/placement.md."""
    trace = zipf_trace(4096, 256, 8, seed=0, exponent=0.8)
    loads = [counted(trace, 256)[0]] * 58
    placement = place(loads, 64, 8, 32, [pairs_of(trace, 256)] * 58)
    assert all(sum(map(len, layer.slots)) == 288 for layer in placement.layers)
