"""Bytes between ranks, by hand and by brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from moec.common.errors import MoecError
from moec.placing.placement import LayerPlacement, linear
from moec.placing.volume import (
    RowBytes,
    bytes_sent,
    choose_transport,
    exchange,
    expected_bytes,
    recorded_bytes,
)

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


def test_rows_that_nobody_else_computes_do_not_travel():
    counted = exchange(TWO_RANKS, [ids((0, 1), (1, 0), (-1, 1)), ids((1, 0))])
    assert bytes_sent(counted, WIDTH, "alltoall").out.tolist() == [[0, 1], [101, 0]]
    assert bytes_sent(counted, WIDTH, "allgather").out.tolist() == [[0, 1], [101, 0]]
    assert bytes_sent(counted, WIDTH, "allgather").back.tolist() == [[0, 20], [0, 0]]


def test_allgather_sends_a_row_to_all_ranks_where_one_needs_it():
    counted = exchange(linear("experts", 3, 3), [ids((0, 1)), ids(), ids()])
    assert bytes_sent(counted, WIDTH, "alltoall").out[0].tolist() == [0, 101, 1]
    assert bytes_sent(counted, WIDTH, "allgather").out[0].tolist() == [0, 101, 101]


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
    assert "nothing is sent" in choose_transport(linear("experts", 4, 1), 8, WIDTH).reason


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
            everybody = transport == "allgather" and set(computing) - {rank}
            for other in set(range(ranks) if everybody else computing) - {rank}:
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
@pytest.mark.parametrize(
    ("slots", "error"),
    [(((0,), (1,), (2,), (3,)), 1e-12), (((0, 1), (2, 3)) * 2, 1e-12), (((0, 1, 2, 3),) * 2 + ((0,), (1,)), 0.2)],
)
def test_expected_bytes_are_the_mean_over_all_choices(slots, error, transport):
    """All choices of three experts, with repetition, are equally likely: the formula's assumption. It takes the turns
    of several candidates to be independent, too, while those of one token are the same."""
    width, placed = RowBytes(100, 10), LayerPlacement("experts", 4, slots)
    every = np.repeat(np.array(list(itertools.product(range(4), repeat=3)), np.int32), 2, axis=0)
    sent = bytes_sent(exchange(placed, [every] * 4, 2), width, transport)
    assert sent.total / (4 * len(every)) == pytest.approx(expected_bytes(placed, 3, width, transport, 2), rel=error)
    assert recorded_bytes(placed, every, WIDTH, transport, 2) == pytest.approx(sent.total / (4 * len(every)))


def test_expected_bytes_are_those_of_the_published_formula():
    width, ranks, k = RowBytes(100, 10), 8, 3
    sent = expected_bytes(linear("experts", 16, ranks), k, width, "alltoall")
    assert sent == pytest.approx(100 * 7 * (1 - (1 - 1 / 8) ** 3) + 10 * 3 * 7 / 8)


def test_transport_is_chosen_by_volume_and_says_why():
    width = RowBytes(4096, 4096)
    few, many = (choose_transport(linear("experts", 64, ranks), 8, width) for ranks in (4, 64))
    assert few.transport == "allgather"
    assert few.reason == (
        "sends 3% more than alltoall (36.9 kB per token and layer in place of 35.6 kB), at most 10%, "
        "and about as much whatever the tokens choose"
    )
    assert many.transport == "alltoall"
    assert many.reason == ("allgather would send 362% more (290 kB per token and layer in place of 62.8 kB), above 10%")


def test_recorded_tokens_choose_the_transport_where_they_are_known():
    """Experts 0 and 1 are on one rank: a token that selects both goes to one rank, which even routing does not say."""
    placed, width = linear("experts", 8, 4), RowBytes(4096, 4096)
    together, apart = np.array([(0, 1), (4, 5)]), np.array([(0, 2), (4, 6)])
    assert choose_transport(placed, 2, width, recorded=together).transport == "alltoall"
    assert ", by the profile)" in choose_transport(placed, 2, width, recorded=apart).reason
    unknown = choose_transport(placed, 2, width, recorded=together[:0])
    assert unknown == choose_transport(placed, 2, width)


def test_replicas_choose_the_transport():
    """All experts on all ranks: nothing travels. On two of four: half of the tokens' rows stay."""
    everything = (0, 1)
    assert choose_transport(LayerPlacement("a", 2, (everything,) * 4), 2, WIDTH).transport == "alltoall"
    halves = LayerPlacement("a", 2, (everything, everything, (), ()))
    assert expected_bytes(halves, 1, WIDTH, "alltoall") == 110 / 2
    assert expected_bytes(halves, 1, WIDTH, "allgather") == (3 * 100 + 10) / 2
