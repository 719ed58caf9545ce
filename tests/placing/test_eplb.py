"""EPLB prints what the original prints, its rules hold on all small cases, and no rank has an expert twice."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from moec.common.errors import MoecError
from moec.placing import eplb

LOADS = np.array(
    [[90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86], [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27]]
)
"""The example of the original's README."""
UNEVEN = np.array([600, 560, 120, 120, 20, 10, 10, 10])
"""The example of FlashLB (https://github.com/vllm-project/vllm-ascend/pull/3042), where EPLB comes to 232."""


def some_loads(experts: int, layers: int = 20) -> np.ndarray:
    return np.random.default_rng(experts).integers(0, 50, (layers, experts))


def flat(slots: eplb.Slots) -> list[int]:
    return [expert for rank in slots for expert in rank]


def highest(slots: eplb.Slots, loads: np.ndarray) -> float:
    counts = np.bincount(flat(slots), minlength=len(loads))
    return max(sum(loads[expert] / counts[expert] for expert in rank) for rank in slots)


def test_the_published_example():
    placed = eplb.rebalance(LOADS, 16, 4, 2, 8)
    assert [flat(layer) for layer in placed] == [
        [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
        [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
    ]


def test_the_example_of_another_balancer():
    slots = eplb.rebalance(UNEVEN[None], 16, 1, 1, 8)[0]
    assert highest(slots, UNEVEN) == 232
    assert slots[7] == [1, 1]


@pytest.mark.parametrize(("experts", "slots"), [(2, 6), (3, 7), (4, 8)])
def test_replicas_make_the_highest_load_per_replica_least(experts, slots):
    loads = some_loads(experts)
    expert_of, counts = eplb.replicate(loads, slots)
    ways = [np.array(way) for way in itertools.product(range(1, slots), repeat=experts) if sum(way) == slots]
    assert [np.bincount(row, minlength=experts).tolist() for row in expert_of] == counts.tolist()
    assert [max(row / count) for row, count in zip(loads, counts, strict=True)] == pytest.approx(
        [min(max(row / way) for way in ways) for row in loads]
    )


@pytest.mark.parametrize(("things", "packs"), [(6, 2), (8, 4), (7, 3), (4, 4), (2, 5)])
def test_things_go_to_the_least_pack_with_room(things, packs):
    loads = some_loads(things).astype(np.float32)
    pack_of, place = eplb.pack(loads, packs)
    for row, chosen, places in zip(loads, pack_of, place, strict=True):
        counts = np.bincount(chosen, minlength=packs)
        assert counts.max() - counts.min() <= 1
        assert sorted(zip(chosen, places, strict=True)) == [
            (pack, n) for pack in range(packs) for n in range(counts[pack])
        ]
        if things == packs:
            assert chosen.tolist() == list(range(things))
            continue
        held: list[list[int]] = [[] for _ in range(packs)]
        for thing in sorted(range(things), key=lambda thing: -row[thing]):
            totals = {pack: row[held[pack]].sum() for pack in range(packs) if len(held[pack]) < things // packs}
            assert all(row[held[chosen[thing]]].sum() <= total for total in totals.values())
            held[chosen[thing]].append(thing)


def test_groups_stay_together_where_nodes_divide_them():
    for slots in eplb.rebalance(some_loads(12), 16, 4, 2, 4):
        nodes = [{expert // 3 for rank in half for expert in rank} for half in (slots[:2], slots[2:])]
        assert [len(groups) for groups in nodes] == [2, 2] and not nodes[0] & nodes[1]


def test_nodes_that_do_not_divide_groups_count_as_one():
    loads = some_loads(12)
    assert eplb.rebalance(loads, 16, 3, 2, 4) == eplb.rebalance(loads, 16, 1, 1, 4)
    assert eplb.rebalance(loads, 16, 4, 2, 4) != eplb.rebalance(loads, 16, 1, 1, 4)


@pytest.mark.parametrize(
    ("experts", "slots", "groups", "nodes", "ranks"), [(8, 11, 1, 1, 3), (8, 11, 2, 2, 4), (3, 3, 1, 1, 5)]
)
def test_numbers_that_do_not_divide(experts, slots, groups, nodes, ranks):
    for placed in eplb.rebalance(some_loads(experts), slots, groups, nodes, ranks):
        sizes = [len(rank) for rank in placed]
        assert sum(sizes) == slots and max(sizes) - min(sizes) <= 1
        assert set(flat(placed)) == set(range(experts))


@pytest.mark.parametrize(("slots", "groups", "ranks"), [(7, 1, 2), (8, 3, 2), (8, 1, 3)])
def test_numbers_that_do_not_fit_are_refused(slots, groups, ranks):
    with pytest.raises(MoecError, match="expected a slot for every expert"):
        eplb.rebalance(some_loads(8), slots, groups, 2, ranks)


def test_no_rank_has_an_expert_twice():
    loads = some_loads(8, 60) ** 3
    twice = 0
    for row, slots in zip(loads, eplb.rebalance(loads, 16, 1, 1, 8), strict=True):
        mended = eplb.distinct(slots, row)
        twice += any(len(set(rank)) < len(rank) for rank in slots)
        assert all(len(set(rank)) == len(rank) for rank in mended)
        assert set(flat(mended)) == set(range(8))
        counts = [np.bincount(flat(placed), minlength=8) for placed in (slots, mended)]
        assert (counts[1] == np.minimum(counts[0], 8)).all()
    assert twice > 10


def test_distinct_slots_stay():
    slots = [[2, 0], [1, 0]]
    assert eplb.distinct(slots, np.array([9, 5, 4])) == slots


def test_more_replicas_than_ranks_are_dropped():
    assert eplb.distinct([[0, 0], [0, 1]], np.array([9, 1])) == [[0], [0, 1]]


def test_the_partner_leaves_the_least_load():
    assert eplb.distinct([[0, 0], [1, 2], [3, 4]], np.array([8, 1, 6, 4, 4])) == [[0, 3], [1, 2], [4, 0]]
