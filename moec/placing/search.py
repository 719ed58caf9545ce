"""State of a local search over the placement of one layer, and the worth of moves.

A slot may change places with a slot of another rank (*swap*), or be given from an expert with several replicas to
another expert (*replacement*); so replicas and their places are found together. Empty slots are experts without rows.

Sizes: E experts, R ranks, N nodes, W windows, C candidates.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from moec.placing.judge import imbalance, shares

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class Moves:
    """Candidates: ``rank`` loses ``expert`` and gets ``others`` [C], each from its rank in ``partners`` [C], which gets
    ``expert`` for it; -1 for a replacement, where the other expert keeps all its slots. ``rows`` and ``other_rows``:
    ranks that hold the two experts afterwards, bool [C,R]."""

    expert: int
    rank: int
    others: Array
    partners: Array
    rows: Array
    other_rows: Array


class SearchedLayer:
    """Placement of a layer that is being changed. ``loads``: [W,R], in units of the mean rank's load."""

    def __init__(self, holders: Array, windows: Array, pairs: Array | None, nodes: int, allowed: Array) -> None:
        """Begin with ``holders`` bool [E,R], for rows ``windows`` [W,E] and ``pairs`` [E,E] of tokens that select both
        experts. ``allowed`` bool [E,R]: ranks that may hold each expert."""
        ranks = holders.shape[1]
        totals = windows.sum(axis=1, keepdims=True)
        self.nodes, self.allowed = nodes, allowed
        self._rows = np.divide(windows * ranks, totals, out=np.zeros(windows.shape), where=totals > 0)
        self.put(holders)
        self._pairs = None if pairs is None else _normalised(pairs)
        size = ranks // nodes
        self._levels = [np.arange(ranks)] if nodes == 1 else [np.arange(ranks), np.arange(ranks) // size]

    @property
    def imbalance(self) -> float:
        return imbalance(self.loads)

    @property
    def crossing(self) -> float:
        """Share of pairs of experts that are computed on two ranks; with several nodes, plus that on two nodes."""
        if self._pairs is None:
            return 0.0
        together = self._together(np.arange(len(self.holders)), self.holders).sum() / 2
        return len(self._levels) * float(self._pairs.sum()) / 2 - float(together)

    def candidates(self, expert: int, rank: int, targets: Array) -> Moves:
        """List the swaps of a slot with all slots of the ranks ``targets``, and its replacements if the expert has
        other replicas."""
        fits = self.holders[:, targets] & (~self.holders[:, [rank]] & self.allowed[:, [rank]])
        fits &= ~self.holders[expert, targets] & self.allowed[expert, targets]
        others, places = np.nonzero(fits)
        partners = targets[places]
        rows = np.repeat(self.holders[[expert]], len(others), axis=0)
        other_rows = self.holders[others]
        every = np.arange(len(others))
        rows[every, partners], other_rows[every, partners] = True, False
        if self.holders[expert].sum() > 1:
            new = np.nonzero(~self.holders[:, rank] & self.allowed[:, rank] & (self._rows.sum(axis=0) > 0))[0]
            others, partners = np.append(others, new), np.append(partners, np.full(len(new), -1))
            rows = np.concatenate([rows, np.repeat(self.holders[[expert]], len(new), axis=0)])
            other_rows = np.concatenate([other_rows, self.holders[new]])
        rows[:, rank], other_rows[:, rank] = False, True
        return Moves(expert, rank, others, partners, rows, other_rows)

    def loads_after(self, moves: Moves) -> Array:
        """Compute the loads [C,W,R] after each move."""
        own = shares(moves.rows, self.nodes) - self._shares[moves.expert]
        other = shares(moves.other_rows, self.nodes) - self._shares[moves.others]
        of_other = self._rows[:, moves.others].T[:, :, None] * other[:, None, :]
        return self.loads + self._rows[:, moves.expert][:, None] * own[:, None, :] + of_other

    def crossing_saved(self, moves: Moves) -> Array:
        """Compute by how much each move lowers :attr:`crossing`, [C]."""
        if self._pairs is None:
            return np.zeros(len(moves.others))
        expert, others = np.full(len(moves.others), moves.expert), moves.others
        before = self._together(np.array([moves.expert]), self.holders[[moves.expert]])
        saved = self._together(expert, moves.rows) - before
        saved += self._together(others, moves.other_rows) - self._together(others, self.holders[others])
        own, other = self.holders[expert], self.holders[others]
        both = self._same(moves.rows, moves.other_rows) + self._same(own, other)
        return saved + self._pairs[expert, others] * (
            both - self._same(moves.rows, other) - self._same(own, moves.other_rows)
        )

    def affinity(self, expert: int) -> Array:
        """Estimate the pairs of an expert with the experts of each rank, [R]."""
        if self._pairs is None:
            return np.zeros(self.holders.shape[1])
        return self._pairs[expert] @ self._shares

    def take(self, moves: Moves, number: int) -> None:
        """Make a move."""
        holders = self.holders.copy()
        holders[[moves.expert, moves.others[number]]] = moves.rows[number], moves.other_rows[number]
        self.put(holders)

    def put(self, holders: Array) -> None:
        """Take the placement ``holders`` bool [E,R] instead."""
        self.holders = holders.copy()
        self._shares = shares(self.holders, self.nodes)
        self.loads = self._rows @ self._shares

    def _together(self, experts: Array, rows: Array) -> Array:
        """Sum the pairs [C] of an expert that are computed in one place, if the ranks ``rows`` bool [C,R] hold it."""
        assert self._pairs is not None
        total = np.zeros(len(experts))
        for places in self._levels:
            mine, all_held = _by_place(rows, places), _by_place(self.holders, places)
            counts = all_held.sum(axis=1)
            same = _same_place(mine @ all_held.T, mine.sum(axis=1)[:, None], counts[None, :], places[-1] + 1)
            total += np.einsum("ce,ce->c", self._pairs[experts], same)
        return total

    def _same(self, rows: Array, others: Array) -> Array:
        """Estimate how often two experts with the holders bool [C,R] are computed in one place, [C]."""
        total = np.zeros(len(rows))
        for places in self._levels:
            mine, theirs = _by_place(rows, places), _by_place(others, places)
            total += _same_place((mine * theirs).sum(axis=1), mine.sum(axis=1), theirs.sum(axis=1), places[-1] + 1)
        return total


def _normalised(pairs: Array) -> Array:
    """Scale pairs [E,E] such that all pairs of different experts sum to 1, each counted once."""
    pairs = np.asarray(pairs, np.float32).copy()
    np.fill_diagonal(pairs, 0)
    pairs = pairs + pairs.T
    pairs *= np.float32(2 / max(1.0, float(pairs.sum())))
    return pairs


def _by_place(holders: Array, places: Array) -> Array:
    """Convert ranks bool [C,R] to places float32 [C,P]; consecutive ranks share a place."""
    if places[-1] + 1 == len(places):
        return holders.astype(np.float32)
    return np.asarray(holders.reshape(len(holders), places[-1] + 1, -1).any(axis=-1), np.float32)


def _same_place(common: Array, mine: Array, theirs: Array, places: int) -> Array:
    """Estimate how often two experts are computed in one place.

    ``mine`` and ``theirs`` are the numbers of places that hold each, ``common`` of those that hold both. Tokens of a
    place that holds both stay; of one that holds neither, they go to any place of each; of one that holds one of them,
    to two. Experts of the same places always go together, because the rule of programs chooses by number.
    """
    product = mine * theirs
    neither = places - mine - theirs + common
    apart = common * (1 + neither / product) / places
    return np.asarray(np.where((common == mine) & (mine == theirs), 1.0, apart))
