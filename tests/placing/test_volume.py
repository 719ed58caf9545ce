"""Bytes between ranks, by hand and by brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from moec.common.errors import MoecError
from moec.placing.placement import LayerPlacement, linear
from moec.placing.volume import RowBytes, bytes_sent, choose_transport, exchange, expected_bytes

TWO_RANKS = LayerPlacement("experts", 4, ((0, 1), (2, 3)))
WIDTH = RowBytes(out=100, back=10, counts=1)


def ids(*rows: tuple[int, ...]) -> np.ndarray:
    return np.array(rows, np.int32).reshape(len(rows), -1 if rows else 2)


def test_three_tokens_on_two_ranks():
    """Rank 0 owns two tokens: one needs both ranks, one only rank 1. Rank 1 owns one that needs only rank 0."""
    counted = exchange(TWO_RANKS, [ids((0, 2), (2, 3)), ids((1, 0))])
    assert counted.rows.tolist() == [[1, 2], [1, 0]]
    assert counted.pairs.tolist() == [[1, 3], [2, 0]]
    assert counted.loads.tolist() == [[2, 1, 0, 0], [0, 0, 2, 1]]
    sent = bytes_sent(counted, WIDTH, "alltoall")
    assert sent.out.tolist() == [[0, 201], [101, 0]]
    assert sent.back.tolist() == [[0, 20], [30, 0]], "rank 0 computes two pairs of rank 1, rank 1 three of rank 0"
    assert (sent.by(0), sent.by(1), sent.total) == (221, 131, 352)
    gathered = bytes_sent(counted, WIDTH, "allgather")
    assert gathered.out.tolist() == [[0, 201], [101, 0]], "every token here has a pair of the other rank"
    assert gathered.back.tolist() == sent.back.tolist()


def test_rows_that_nobody_else_computes_travel_with_allgather_alone():
    counted = exchange(TWO_RANKS, [ids((0, 1), (1, 0)), ids()])
    assert bytes_sent(counted, WIDTH, "alltoall").out.tolist() == [[0, 1], [1, 0]]
    assert bytes_sent(counted, WIDTH, "allgather").out.tolist() == [[0, 201], [1, 0]]
    assert not bytes_sent(counted, WIDTH, "allgather").back.any()


def test_pairs_that_are_not_computed_and_experts_without_weights_are_not_sent():
    counted = exchange(TWO_RANKS, [ids((-1, 2), (-1, -1)), ids((4, -1))])
    assert counted.rows.tolist() == [[0, 1], [0, 1]]
    assert counted.pairs.tolist() == [[0, 1], [0, 1]]
    assert counted.loads.tolist() == [[0] * 4, [0, 0, 1, 0]]


def test_a_replica_on_the_owner_saves_the_row():
    placed = LayerPlacement("experts", 2, ((0,), (0, 1)))
    assert exchange(placed, [ids(), ids((0, 1))]).rows.tolist() == [[0, 0], [0, 1]]
    assert exchange(linear("experts", 2, 2), [ids(), ids((0, 1))]).rows.tolist() == [[0, 0], [1, 1]]


def test_all_tokens_to_one_expert():
    sent = bytes_sent(exchange(linear("experts", 4, 4), [ids((3,), (3,))] * 4), RowBytes(100, 10), "alltoall")
    assert sent.out.tolist() == [[0, 0, 0, 200]] * 3 + [[0] * 4]
    assert sent.back.tolist() == [[0] * 4] * 3 + [[20, 20, 20, 0]]


def test_one_rank_sends_nothing():
    counted = exchange(linear("experts", 4, 1), [ids((0, 1), (2, 3))])
    assert counted.pairs.tolist() == [[4]]
    assert all(bytes_sent(counted, WIDTH, transport).total == 0 for transport in ("allgather", "alltoall"))
    assert choose_transport(1, 8, WIDTH).reason == "a single rank sends nothing"


def test_other_number_of_ranks_is_refused():
    with pytest.raises(MoecError, match="expected ids of 2 ranks, found those of 1"):
        exchange(TWO_RANKS, [ids((0, 1))])


def _by_hand(placed: LayerPlacement, experts: list[np.ndarray], transport: str, nodes: int) -> list[list[int]]:
    """Bytes from rank to rank, one token and pair after the other."""
    ranks = len(experts)
    sent = [[0] * ranks for _ in range(ranks)]
    for rank, own in enumerate(experts):
        destinations = placed.destinations(own, rank, nodes)
        for token, row in enumerate(own):
            computing = [int(destinations[token, slot]) for slot, expert in enumerate(row) if expert >= 0]
            for other in set(range(ranks) if transport == "allgather" else computing) - {rank}:
                sent[rank][other] += WIDTH.out
            for other in computing:
                sent[other][rank] += WIDTH.back * (other != rank)
    for rank, other in itertools.permutations(range(ranks), 2):
        sent[rank][other] += WIDTH.counts
    return sent


@pytest.mark.parametrize("transport", ["allgather", "alltoall"])
@pytest.mark.parametrize(("ranks", "nodes"), [(2, 1), (4, 2), (6, 3)])
def test_bytes_equal_those_of_one_pair_after_the_other(ranks, nodes, transport):
    random = np.random.default_rng(ranks)
    slots = [sorted({rank, *random.choice(ranks, 2)}) for rank in range(ranks)]
    placed = LayerPlacement("experts", ranks, tuple(tuple(map(int, row)) for row in slots))
    experts = [random.integers(-1, ranks + 1, (random.integers(9), 3)) for _ in range(ranks)]
    sent = bytes_sent(exchange(placed, experts, nodes), WIDTH, transport)
    assert (sent.out + sent.back).tolist() == _by_hand(placed, experts, transport, nodes)


@pytest.mark.parametrize("transport", ["allgather", "alltoall"])
def test_expected_bytes_are_the_mean_over_all_choices(transport):
    """All choices of three experts, with repetition, are equally likely: the formula's assumption."""
    ranks, k, width = 4, 3, RowBytes(100, 10)
    every = np.array(list(itertools.product(range(ranks), repeat=k)), np.int32)
    sent = bytes_sent(exchange(linear("experts", ranks, ranks), [every] * ranks), width, transport)
    assert sent.total / (ranks * len(every)) == pytest.approx(expected_bytes(ranks, k, width, transport), rel=1e-12)


def test_transport_is_chosen_by_volume_and_says_why():
    few, many = choose_transport(4, 8, RowBytes(4096, 4096)), choose_transport(64, 8, RowBytes(4096, 4096))
    assert few.transport == "allgather"
    assert few.reason == (
        "sends 3% more than alltoall (36.9 kB per token and layer in place of 35.6 kB), at most 10%, "
        "and as much whatever the tokens choose"
    )
    assert many.transport == "alltoall"
    assert many.reason == ("allgather would send 362% more (290 kB per token and layer in place of 62.8 kB), above 10%")
