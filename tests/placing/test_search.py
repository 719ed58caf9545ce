"""The worth of a move is what a new computation after it finds."""

from __future__ import annotations

import numpy as np
import pytest

from moec.placing.judge import judge
from moec.placing.placement import ExpertPlacement, LayerPlacement
from moec.placing.search import SearchedLayer

from .traces import zipf_trace

RANDOM = np.random.default_rng(0)
PAIRS = RANDOM.integers(0, 50, (6, 6))


def layer(nodes: int, allowed: np.ndarray | None = None) -> SearchedLayer:
    holders = np.zeros((6, 4), bool)
    for rank, experts in enumerate(((0, 1), (1, 2), (3, 4), (1, 5))):
        holders[experts, rank] = True
    return SearchedLayer(
        holders, RANDOM.integers(1, 90, (2, 6)), PAIRS, nodes, np.ones((6, 4), bool) if allowed is None else allowed
    )


@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize(("expert", "rank"), [(1, 0), (0, 0), (4, 2)])
def test_moves_do_what_they_are_worth(nodes, expert, rank):
    begun = layer(nodes)
    moves = begun.candidates(expert, rank, np.arange(4))
    assert (moves.partners[moves.others != 1] != rank).all()
    replaced = moves.others[moves.partners < 0].tolist()
    assert replaced == ([2, 3, 4, 5] if expert == 1 else [])
    loads, saved, holders, crossing = (
        begun.loads_after(moves),
        begun.crossing_saved(moves),
        begun.holders.copy(),
        begun.crossing,
    )
    for number in range(len(moves.others)):
        begun.take(moves, number)
        assert begun.holders.sum() == holders.sum() and begun.holders.any(axis=1).all()
        assert (begun.holders.sum(axis=0) == holders.sum(axis=0)).all()
        assert begun.loads == pytest.approx(loads[number])
        assert crossing - begun.crossing == pytest.approx(saved[number], abs=1e-6)
        begun.put(holders)


def test_experts_stay_where_they_are_allowed():
    allowed = np.ones((6, 4), bool)
    allowed[3, :2] = allowed[0, 2] = False
    moves = layer(1, allowed).candidates(3, 2, np.arange(4))
    assert set(zip(moves.others.tolist(), moves.partners.tolist(), strict=True)) == {(1, 3), (5, 3)}


def test_crossing_is_what_a_trace_shows_without_replicas():
    trace = zipf_trace(600, 8, 3, seed=3)
    slots = ((0, 5), (1, 2), (3, 4), (6, 7))
    holders = np.zeros((8, 4), bool)
    for rank, experts in enumerate(slots):
        holders[experts, rank] = True
    pairs = np.array([[sum(a in row and b in row for row in trace.tolist()) for a in range(8)] for b in range(8)])
    (judged,) = judge(ExpertPlacement(4, (LayerPlacement("a", 8, slots),), 2), [trace])
    found = SearchedLayer(holders, np.ones((1, 8)), pairs, 1, holders).crossing
    assert found == pytest.approx(judged.crossing, abs=1e-6)
    both = SearchedLayer(holders, np.ones((1, 8)), pairs, 2, holders).crossing
    assert both == pytest.approx(judged.crossing + judged.crossing_nodes, abs=1e-6)
