"""Times of expert layers, by hand: a row takes a second to compute, and links carry 100 bytes per second after one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from moec.common.roofline import FLOAT32, Peak, Roofline
from moec.common.work import GroupedWork
from moec.placing.placement import LayerPlacement, linear
from moec.placing.volume import RowBytes, exchange
from moec.predicting.layers import Experts, MicroBatch, Schedule, simulate
from moec.predicting.links import Link, Links

ROOFLINE = Roofline(1, {"memory": 1e30}, (Peak(FLOAT32, "units", 2.0),))
LAYER = Experts("experts", (GroupedWork(1, 1, 1, FLOAT32, (32.0,)),), RowBytes(out=100, back=10))
LINKS = Links(Link(100.0, 1.0), Link(100.0, 1.0))
TWO_RANKS = LayerPlacement("experts", 4, ((0, 1), (2, 3)))
ALLTOALL, ALLGATHER = Schedule("alltoall"), Schedule("allgather")


def ids(*rows: tuple[int, ...]) -> np.ndarray:
    return np.array(rows, np.int32).reshape(len(rows), -1 if rows else 2)


THREE_TOKENS = MicroBatch(exchange(TWO_RANKS, [ids((0, 2), (2, 3)), ids((1, 0))]))


def times(parts, schedule=ALLTOALL, links=LINKS, roofline=ROOFLINE):
    return simulate([LAYER] * len(parts), parts, roofline, links, schedule)


def test_three_tokens_on_two_ranks():
    (layer,) = times([[THREE_TOKENS]])
    assert (layer.out, layer.experts, layer.back) == pytest.approx((1 + 2, 3, 1 + 0.3))
    assert layer.seconds == pytest.approx(7.3)
    assert layer.exposed == pytest.approx(4.3 / 7.3)
    assert (layer.imbalance, layer.sent) == (1.0, 350)
    (gathered,) = times([[THREE_TOKENS]], ALLGATHER)
    assert gathered.out == pytest.approx(1 + 2), "the larger block takes longest"
    assert gathered.seconds == pytest.approx(7.3)


def test_counts_come_before_rows():
    """They take a latency and their own bytes."""
    layer = dataclasses.replace(LAYER, width=RowBytes(out=100, back=10, counts=50))
    (counted,) = simulate([layer], [[THREE_TOKENS]], ROOFLINE, LINKS, ALLGATHER)
    assert counted.out == pytest.approx(1.5 + 1 + 2)


def test_a_shared_expert_runs_while_rows_travel_unless_it_may_not():
    part = dataclasses.replace(THREE_TOKENS, dense=5.0, shared=2.0)
    assert times([[part]])[0].seconds == pytest.approx(5 + 7.3)
    assert times([[part]], Schedule("alltoall", overlap_shared=False))[0].seconds == pytest.approx(5 + 2 + 7.3)
    longer = dataclasses.replace(part, shared=6.0)
    assert times([[longer]])[0].seconds == pytest.approx(5 + 6 + 3 + 1.3), "rows wait for the shared expert"


def test_layers_follow_one_another():
    first, second = times([[THREE_TOKENS], [dataclasses.replace(THREE_TOKENS, dense=1.0)]])
    assert (first.seconds, second.seconds) == pytest.approx((7.3, 8.3))


def test_halves_of_the_tokens_hide_what_travels():
    """Each half has one row for the other rank, so 1 + 1 s out, 1 s of experts and 1.1 s back; the second half's rows
    leave at 2, arrive at 4 and are computed at 5."""
    half = MicroBatch(exchange(TWO_RANKS, [ids((2, -1)), ids((0, -1))]))
    (layer,) = times([[half, half]])
    assert (layer.out, layer.experts, layer.back) == pytest.approx((4, 2, 2.2))
    # At 3 the first half is computed, but the network is free at 4 only.
    assert layer.seconds == pytest.approx(4 + 1.1 + 1.1)
    slow = Roofline(1, {"memory": 1e30}, (Peak(FLOAT32, "units", 0.02),))
    (computing,) = times([[half, half]], roofline=slow)
    assert computing.seconds == pytest.approx(2 + 100 + 100 + 1.1)
    assert computing.exposed == pytest.approx(3.1 / 203.1)


def test_the_slowest_rank_holds_up_all():
    """Rank 1 computes all eight rows, six of which travel."""
    part = MicroBatch(exchange(linear("experts", 4, 4), [ids((1,), (1,))] * 4))
    (layer,) = times([[part]])
    assert (layer.out, layer.experts, layer.back) == pytest.approx((1 + 6, 8, 1 + 0.6))
    assert layer.imbalance == 4.0
    spread = MicroBatch(exchange(linear("experts", 4, 4), [ids((0,), (1,)), ids((2,), (3,))] * 2))
    assert times([[spread]])[0].imbalance == 1.0


def test_replicas_keep_rows_where_they_are():
    placed = LayerPlacement("experts", 2, ((0, 1), (0, 1)))
    (layer,) = times([[MicroBatch(exchange(placed, [ids((0, 1)), ids((1, 0))]))]])
    assert (layer.out, layer.experts, layer.back, layer.sent) == (1.0, 2.0, 1.0, 0)


def test_one_rank_does_not_communicate():
    (layer,) = times([[MicroBatch(exchange(linear("experts", 4, 1), [ids((0, 1), (2, 3))]), dense=1.0)]])
    assert (layer.seconds, layer.exposed, layer.sent, layer.imbalance) == (5.0, 0.0, 0, 1.0)


def test_no_token_takes_latencies_alone():
    (layer,) = times([[MicroBatch(exchange(TWO_RANKS, [ids(), ids()]))]])
    assert (layer.seconds, layer.exposed, layer.imbalance) == (2.0, 1.0, 1.0)
    assert simulate([], [], ROOFLINE, LINKS, ALLTOALL) == []


def test_weights_are_read_of_experts_with_rows_alone():
    """A matrix of one number takes 4 s to read, a row of 8 bytes takes 8 s."""
    reading = Roofline(1, {"memory": 1.0}, (Peak(FLOAT32, "units", 1e30),))
    assert LAYER.seconds(np.array([3, 0, 1, 0]), reading) == 2 * 4 + 4 * 8
    assert LAYER.seconds(np.zeros(4, int), reading) == 0.0
