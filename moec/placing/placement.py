"""The placement of experts on ranks: a table [layer][rank][slot] of expert ids, the part of a plan
(:mod:`moec.placing.plan`) that is about ranks.

Slots of a rank are distinct experts; every expert has a slot on at least one rank. An expert with slots on several
ranks has *replicas*: each of its rows goes to one of them (:meth:`LayerPlacement.destinations`).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Literal, get_args

import numpy as np

from moec.common.errors import MoecError

Transport = Literal["allgather", "alltoall"]
TRANSPORTS: tuple[Transport, ...] = get_args(Transport)
MOST_RANKS = 65_536
"""Bound for files that are not trusted."""


@dataclasses.dataclass(frozen=True)
class LayerPlacement:
    """The slots of one layer, as [rank][slot], of ``experts`` experts."""

    name: str
    experts: int
    slots: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        every = {expert for slots in self.slots for expert in slots}
        stray = next((expert for expert in every if not 0 <= expert < self.experts), None)
        if stray is not None:
            raise MoecError(
                f"placement of {self.name!r}: slots have expert {stray}; expected experts from 0 to {self.experts - 1}"
            )
        missing = next((expert for expert in range(self.experts) if expert not in every), None)
        if missing is not None:
            raise MoecError(f"placement of {self.name!r}: expert {missing} has no slot; give it one on some rank")
        for rank, slots in enumerate(self.slots):
            if len(set(slots)) < len(slots):
                raise MoecError(f"placement of {self.name!r}: rank {rank} has an expert in two slots; keep one of them")

    def holders(self) -> list[list[int]]:
        """List, for each expert, the ranks that hold it, in ascending order."""
        holders: list[list[int]] = [[] for _ in range(self.experts)]
        for rank, slots in enumerate(self.slots):
            for expert in slots:
                holders[expert].append(rank)
        return holders

    def destinations(self, experts: np.ndarray, rank: int, nodes: int = 1) -> np.ndarray:
        """Choose the rank that computes each pair: ``experts`` int [T,k], the result int32 [T,k].

        A rank computes a pair itself if it holds the expert; otherwise a rank of its node does, and otherwise any.
        Among several candidates token t of rank r takes number ``(r + t) % candidates``, which spreads rows evenly.
        Ids outside of [0, E) (not dispatched: -1; experts without weights: E and more) stay on the rank. The choice
        changes no result, because replicas hold the same weights.
        """
        tokens = np.arange(len(experts))[:, None]
        counts, table = candidates(self, rank, nodes)
        valid = (experts >= 0) & (experts < self.experts)
        indices = np.where(valid, experts, 0)
        chosen = table[indices, (rank + tokens) % counts[indices]]
        return np.where(valid, chosen, rank).astype(np.int32)

    def shares_from(self, rank: int, nodes: int = 1) -> np.ndarray:
        """Compute the share [R] of a rank's pairs that each rank computes, for experts that are chosen evenly."""
        counts, table = candidates(self, rank, nodes)
        weights = (np.arange(table.shape[1]) < counts[:, None]) / (counts[:, None] * self.experts)
        return np.bincount(table.ravel(), weights.ravel(), len(self.slots))


@functools.lru_cache(4096)
def candidates(layer: LayerPlacement, rank: int, nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """The ranks that may compute each expert for a rank: their number [E], and the ranks [E, most]."""
    size = max(1, len(layer.slots) // nodes)
    rows = []
    for holders in layer.holders():
        near = [holder for holder in holders if holder // size == rank // size]
        rows.append([rank] if rank in holders else near or holders)
    table = np.zeros((layer.experts, max(map(len, rows), default=1)), np.int32)
    for expert, row in enumerate(rows):
        table[expert, : len(row)] = row
    return np.array([len(row) for row in rows], np.int64), table


@dataclasses.dataclass(frozen=True)
class ExpertPlacement:
    """Placements of all layers on ``ranks`` ranks of ``nodes`` machines with equally many consecutive ranks each.

    ``transport``: the way of rows to other ranks (:mod:`moec.placing.volume`); None where none was chosen."""

    ranks: int
    layers: tuple[LayerPlacement, ...]
    nodes: int = 1
    transport: Transport | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.nodes <= self.ranks <= MOST_RANKS or self.ranks % self.nodes:
            raise MoecError(f"{self.ranks} ranks on {self.nodes} nodes; expected a multiple of the number of nodes")
        for layer in self.layers:
            if len(layer.slots) != self.ranks:
                raise MoecError(f"placement of {layer.name!r}: slots of {len(layer.slots)} ranks, not of {self.ranks}")


def linear(name: str, experts: int, ranks: int) -> LayerPlacement:
    """Place consecutive experts on consecutive ranks, as evenly as possible: the placement without a profile."""
    cuts = [experts * rank // ranks for rank in range(ranks + 1)]
    return LayerPlacement(name, experts, tuple(tuple(range(*pair)) for pair in itertools.pairwise(cuts)))
