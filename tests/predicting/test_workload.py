"""Tokens that are drawn, predictions of whole runs, and changes that would help."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from moec.common.roofline import FLOAT32, Peak, Roofline
from moec.common.work import GroupedWork
from moec.placing.placement import ExpertPlacement, LayerPlacement, linear
from moec.placing.volume import RowBytes
from moec.predicting.advice import changes, other_placements
from moec.predicting.layers import Experts, Schedule
from moec.predicting.links import Link, Links
from moec.predicting.workload import DenseTimes, RoutedLayer, Setup, Workload, predict

ROOFLINE = Roofline(1, {"memory": 1e30}, (Peak(FLOAT32, "units", 2.0),))
EXPERTS = Experts("experts", (GroupedWork(1, 1, 1, FLOAT32, (32.0,)),), RowBytes(out=100, back=100))
EVEN = RoutedLayer(EXPERTS, 2, np.ones(8))
SKEWED = RoutedLayer(EXPERTS, 1, np.array([1e6, 1, 1, 1e6, 1, 1, 1, 1]))


def setup_of(layer: RoutedLayer = EVEN, ranks: int = 4, tokens: int = 64, bandwidth: float = 100.0, **fields) -> Setup:
    links = Links(Link(bandwidth, 0.0), Link(bandwidth, 0.0))
    placement = ExpertPlacement(ranks, (linear("experts", len(layer.popularity), ranks),))
    return Setup(ROOFLINE, links, placement, tokens, Schedule("alltoall"), **fields)


def workload_of(layer: RoutedLayer = EVEN, dense: float = 0.0, shared: float = 0.0) -> Workload:
    return Workload((layer,), lambda tokens: DenseTimes(dense * tokens, (shared * tokens,)))


def test_tokens_select_distinct_experts_as_often_as_these_are_popular():
    ids = RoutedLayer(EXPERTS, 2, np.array([4.0, 2, 1, 1])).drawn(8000, seed=1)
    assert (ids[:, 0] != ids[:, 1]).all()
    first = RoutedLayer(EXPERTS, 1, np.array([4.0, 2, 1, 1])).drawn(8000, seed=1)
    assert np.bincount(first.ravel()) / 8000 == pytest.approx([0.5, 0.25, 0.125, 0.125], abs=0.02)
    assert (ids == RoutedLayer(EXPERTS, 2, np.array([4.0, 2, 1, 1])).drawn(8000, seed=1)).all()
    assert RoutedLayer(EXPERTS, 2, np.ones(4)).drawn(0, seed=1).shape == (0, 2)
    assert RoutedLayer(EXPERTS, 2, np.ones(4)).drawn(20_000, seed=1).shape == (20_000, 2)


def test_routers_that_keep_groups_select_from_these_alone():
    grouped = RoutedLayer(EXPERTS, 4, np.ones(16), groups=8, kept=2).drawn(500, seed=3)
    assert max(len(set(row)) for row in grouped // 2) == 2
    free = RoutedLayer(EXPERTS, 4, np.ones(16)).drawn(500, seed=3)
    assert max(len(set(row)) for row in free // 2) == 4


def test_tokens_are_drawn_from_recorded_ones_as_often_as_their_experts_are_popular():
    recorded = np.array([(0, 1), (0, 1), (2, 3), (3, -1)])
    ids = RoutedLayer(EXPERTS, 2, np.array([1.0, 1, 6, 8]), recorded=recorded).drawn(8000, seed=1)
    assert {tuple(row) for row in ids} == {(0, 1), (2, 3), (3, -1)}, "and no pair that was not recorded"
    loads = np.bincount(ids[ids >= 0], minlength=4)
    assert loads / loads.sum() == pytest.approx([1 / 16, 1 / 16, 6 / 16, 8 / 16], abs=0.02)
    assert RoutedLayer(EXPERTS, 2, np.ones(4), recorded=recorded[:0]).drawn(9, seed=1).shape == (9, 2)
    of_others = RoutedLayer(EXPERTS, 2, np.array([0.5, 0.5, 0.5, 0.5, 9]), recorded=recorded).drawn(99, seed=1)
    assert of_others.max() == 3, "expert 4 is popular, and no recorded token has it"


def test_a_run_on_one_rank_is_its_dense_parts_and_all_rows():
    predicted = predict(workload_of(dense=1.0, shared=0.5), setup_of(ranks=1, tokens=3))
    assert predicted.seconds == pytest.approx(3 * 1.5 + 6)
    assert predicted.seconds_per_token == pytest.approx(predicted.seconds / 3)
    assert predicted.exposed == 0.0


def test_halves_have_the_tokens_of_the_whole():
    whole, halves = (predict(workload_of(), setup_of(tokens=5, halves=halves)) for halves in (False, True))
    assert whole.layers[0].sent == halves.layers[0].sent
    assert whole.layers[0].imbalance == halves.layers[0].imbalance


def best(layer: RoutedLayer, setup: Setup, **times: float):
    workload = workload_of(layer, **times)
    return changes(workload, predict(workload, setup), other_placements(workload, setup.placement))


def test_slow_links_are_what_to_change_where_rows_are_spread():
    found = best(EVEN, setup_of(bandwidth=1.0))
    assert found[0].kind == "link"
    assert found[0].saved == pytest.approx(0.5, abs=0.02)
    assert found[0].text.startswith("links of twice the bandwidth: 50% less, ")
    assert {change.kind: change.saved for change in found}["transport"] < 0, "all-gather sends more"


def test_replicas_are_what_to_change_where_one_expert_has_all_rows():
    """Ranks are four: the one of expert 0 computes half of all rows; of two experts on three ranks each, a third."""
    found = {change.kind: change for change in best(SKEWED, setup_of(SKEWED, bandwidth=1e9))}
    assert found["replicas"].saved == max(change.saved for change in found.values()) == pytest.approx(1 / 3, abs=0.04)
    assert found["placement"].saved == pytest.approx(0, abs=0.05), "they are on two ranks already"


def test_a_placement_is_what_to_change_where_popular_experts_share_a_rank():
    layer = dataclasses.replace(SKEWED, popularity=np.array([1e6, 1e6, 1, 1, 1, 1, 1, 1]))
    found = {change.kind: change for change in best(layer, setup_of(layer, bandwidth=1e9))}
    assert found["placement"].saved == pytest.approx(0.5, abs=0.06)


def test_a_placement_brings_experts_together_that_recorded_tokens_select_together():
    """All are as popular, so that loads alone say nothing about places."""
    apart = dataclasses.replace(EVEN, recorded=np.array([(0, 7), (3, 4), (1, 6), (2, 5)]))
    beside = dataclasses.replace(EVEN, recorded=np.array([(0, 1), (2, 3), (4, 5), (6, 7)]))
    saved = [
        {change.kind: change.saved for change in best(layer, setup_of(layer, bandwidth=1.0))}.get("placement", 0.0)
        for layer in (apart, beside)
    ]
    assert saved[0] > 0.1 and abs(saved[1]) < 0.05


def test_halves_are_what_to_change_where_dense_parts_take_as_long_as_links():
    found = best(EVEN, setup_of(bandwidth=400.0), dense=1.0)
    assert found[0].kind in ("halves", "link")
    assert {change.kind: change.saved for change in found}["halves"] > 0.1


def test_one_rank_has_only_its_batch_to_change():
    assert [change.kind for change in best(EVEN, setup_of(ranks=1))] == ["batch"]


def test_few_experts_get_as_many_replicas_as_there_is_room_for():
    layer = RoutedLayer(EXPERTS, 1, np.ones(2))
    placement = ExpertPlacement(2, (LayerPlacement("experts", 2, ((0,), (1,))),))
    setup = dataclasses.replace(setup_of(layer, ranks=2), placement=placement)
    found = {change.kind: change for change in best(layer, setup)}
    assert found["replicas"].saved > 0.3, "nothing travels"
