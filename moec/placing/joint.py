"""The joint method: replicas and their places together, for several windows of time, by local search from EPLB's.

1. *Balance*: slots of the ranks with the highest loads are swapped or replaced while a soft maximum of the loads gets
   lower. EPLB selects replicas before places; FlashLB (https://github.com/vllm-project/vllm-ascend/pull/3042) showed
   what that costs.
2. *Locality*: all slots are visited in turn while fewer pairs of experts that tokens select together are computed on
   different ranks (Occult, ICML 2025; ExFlow, arXiv 2401.08383), or on different nodes. Each rank keeps to a limit
   below the highest load of EPLB's result, so that imbalance is no worse than EPLB's on other data, too.
3. *Order*: the ranks of a layer are renamed such that tokens find their experts where those of the layer before were
   (:mod:`moec.placing.order`). That changes neither balance nor pairs.

Everything is counted, not timed, and no step is random.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from moec.common import budgets
from moec.placing import eplb
from moec.placing.search import Moves, SearchedLayer

Array = np.ndarray[Any, Any]

_SOFT = 16
"""Exponent of the soft maximum of loads."""
_TARGETS = 4
"""Ranks whose slots are tried for a slot: the least loaded ones, and those with the most affine experts."""
_PENALTIES = (0.5, 2.0, 8.0, 64.0)
"""Prices of imbalance above what is allowed, in shares of crossing pairs: first low, to leave local optima."""


_OFFSETS = (0.0, 0.25, 0.5)
"""Rules of replication (:func:`moec.placing.eplb.replicate`) that the search begins with; the first is EPLB's."""


_VISIT = 500
"""Price of a visit of a slot, in numbers computed: calls cost time, too."""
_MOST_NOISE = 0.05
"""Bound of the noise of loads of a rank, in units of the mean load, for profiles of few rows."""


@dataclasses.dataclass(frozen=True)
class Task:
    """Numbers of a placement. ``groups`` that nodes divide stay on their node. ``slack``: imbalance that may be added
    for fewer crossing pairs."""

    ranks: int
    nodes: int
    replicas: int
    groups: int
    slack: float = 0.0

    def slots(self, windows: Array, pairs: Array | None) -> eplb.Slots:
        """Select the slots of a layer for rows ``windows`` [W,E] and ``pairs`` [E,E] of tokens that select both."""
        half = budgets.PLACING.limit // 2
        begun = [self._begun(windows, pairs, offset) for offset in (_OFFSETS if self.replicas else _OFFSETS[:1])]
        limits, of_eplb = self._limits(begun[0], float(windows.sum())), begun[0].holders
        for layer in begun:
            _balance(layer, _Effort(half // len(begun)))
        layer = min(begun, key=lambda layer: layer.imbalance)
        if _excess(layer.loads, limits) > 0:
            layer = begun[0]
            layer.put(of_eplb)
        else:
            limits = np.maximum((limits + layer.loads.max(axis=1, keepdims=True)) / 2, layer.loads)
        if pairs is not None:
            _bring_together(layer, limits, half)
        experts = windows.shape[1]
        return [np.nonzero(layer.holders[:experts, rank])[0].tolist() for rank in range(self.ranks)]

    def _limits(self, layer: SearchedLayer, rows: float) -> Array:
        """Limit the load [W,R] of each rank: to the highest of EPLB's less the noise of a rank's ``rows``, or to what
        EPLB gave this rank. Less than the noise would be no gain on other data."""
        noise = min(_MOST_NOISE, float(np.sqrt(layer.loads.size / max(1.0, rows))))
        return np.maximum(layer.loads.max(axis=1, keepdims=True) - noise, layer.loads) + self.slack + 1e-9

    def _begun(self, windows: Array, pairs: Array | None, offset: float) -> SearchedLayer:
        """Begin with EPLB's packing, for replicas by a rule of replication."""
        loads = windows.sum(axis=0)
        slots = eplb.balanced(loads, self.replicas, self.ranks, self.nodes, self.groups, offset)
        holders, rows, together, allowed = _padded(slots, windows, pairs, self.nodes, self.groups)
        return SearchedLayer(holders, rows, together, self.nodes, allowed)


class _Effort:
    """Loads and pairs of experts that moves may still compute."""

    def __init__(self, left: int) -> None:
        self.left = left

    def spend(self, moves: Moves, each: int) -> None:
        """Pay for trying moves that compute so many numbers ``each``."""
        self.left -= _VISIT + len(moves.others) * each


class _Best:
    """Best placement of a layer that was seen."""

    def __init__(self, layer: SearchedLayer, worth: float) -> None:
        self.holders, self.worth = layer.holders.copy(), worth

    def see(self, layer: SearchedLayer, worth: float) -> None:
        if worth < self.worth - 1e-9:
            self.holders, self.worth = layer.holders.copy(), worth


def _balance(layer: SearchedLayer, effort: _Effort) -> None:
    """Lower the soft maximum of loads until no slot of the most loaded ranks can; leave the least imbalance seen."""
    best = _Best(layer, layer.imbalance)
    while effort.left > 0 and _relieve(layer, effort):
        best.see(layer, layer.imbalance)
    layer.put(best.holders)


def _relieve(layer: SearchedLayer, effort: _Effort) -> bool:
    """Make the best move of a slot of the most loaded rank that has one; tell whether there was one."""
    least = _soft(layer.loads[None])[0] - 1e-9
    heat = (layer.loads**_SOFT).sum(axis=0)
    for rank in np.argsort(-heat, kind="stable")[:_TARGETS]:
        targets = _coldest(layer, int(rank))
        chosen: tuple[Moves, int] | None = None
        for expert in np.nonzero(layer.holders[:, rank])[0]:
            moves = layer.candidates(int(expert), int(rank), targets)
            effort.spend(moves, layer.loads.size)
            worths = _soft(layer.loads_after(moves))
            if len(worths) and worths.min() < least:
                least, chosen = worths.min(), (moves, int(worths.argmin()))
        if chosen is not None:
            layer.take(*chosen)
            return True
    return False


def _coldest(layer: SearchedLayer, rank: int) -> Array:
    order = np.argsort(layer.loads.mean(axis=0), kind="stable")
    return order[order != rank][:_TARGETS]


def _soft(loads: Array) -> Array:
    """Compute the soft maximum [C] of loads [C,W,R] over ranks, as a mean over windows."""
    return ((loads**_SOFT).mean(axis=-1) ** (1 / _SOFT)).mean(axis=-1)


def _bring_together(layer: SearchedLayer, limits: Array, budget: int) -> None:
    """Lower the pairs that cross ranks; at the end no load exceeds ``limits`` [W,R]."""
    crossing = 0.0  # relative to that at the beginning
    best = _Best(layer, crossing)
    for penalty in _PENALTIES:
        own, changed = _Effort(budget // len(_PENALTIES)), True
        while changed and own.left > 0:
            changed = False
            for expert, rank in _slots(layer):
                if own.left <= 0 or not layer.holders[expert, rank]:
                    continue
                saved = _visit(layer, expert, rank, penalty, limits, own)
                if saved is not None:
                    changed, crossing = True, crossing - saved
                    if _excess(layer.loads, limits) <= 0:
                        best.see(layer, crossing)
    layer.put(best.holders)


def _slots(layer: SearchedLayer) -> Iterator[tuple[int, int]]:
    experts, ranks = np.nonzero(layer.holders)
    yield from zip(experts.tolist(), ranks.tolist(), strict=True)


def _visit(
    layer: SearchedLayer, expert: int, rank: int, penalty: float, limits: Array, effort: _Effort
) -> float | None:
    """Make the best move of a slot, if one lowers crossing pairs and the price of imbalance together. Returns by how
    much it lowers crossing pairs."""
    affine = np.argsort(-layer.affinity(expert), kind="stable")
    targets = np.concatenate([affine[affine != rank][:_TARGETS], _coldest(layer, rank)])
    moves = layer.candidates(expert, rank, np.unique(targets))
    effort.spend(moves, layer.loads.size + len(layer.holders))
    if not len(moves.others):
        return None
    price = penalty * (_excess(layer.loads_after(moves), limits) - _excess(layer.loads, limits))
    saved = layer.crossing_saved(moves)
    number = int((price - saved).argmin())
    if price[number] - saved[number] >= -1e-6:
        return None
    layer.take(moves, number)
    return float(saved[number])


def _excess(loads: Array, limits: Array) -> Array:
    """Compute by how much the loads [...,W,R] exceed ``limits`` [W,R], as the mean over windows of the worst rank."""
    return np.maximum(loads - limits, 0).max(axis=-1).mean(axis=-1)


def _padded(
    slots: eplb.Slots, windows: Array, pairs: Array | None, nodes: int, groups: int
) -> tuple[Array, Array, Array | None, Array]:
    """Make the arrays of a layer from its slots, with an expert without rows for each empty slot."""
    experts, most = windows.shape[1], max(map(len, slots))
    empty = [rank for rank, own in enumerate(slots) for _ in range(most - len(own))]
    holders = np.zeros((experts + len(empty), len(slots)), bool)
    for rank, own in enumerate(slots):
        holders[own, rank] = True
    holders[np.arange(experts, len(holders)), empty] = True
    allowed = np.ones(holders.shape, bool)
    if eplb.are_grouped(groups, nodes):
        on_node = holders[:experts].reshape(experts, nodes, -1).any(axis=-1)
        allowed[:experts] = np.repeat(on_node, len(slots) // nodes, axis=1)
    rows = np.pad(windows, ((0, 0), (0, len(empty))))
    return holders, rows, None if pairs is None else np.pad(pairs, (0, len(empty))), allowed
