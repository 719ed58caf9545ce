"""Layers of experts with the tokens that they see on several ranks, and the predicted time of a run.

Tokens are drawn from those that a profile recorded, with the experts that these selected together. Without any, their
experts are drawn by popularity, without replacement, from groups of experts where a router is limited to some. They are
the same in every run of a prediction, so that two setups are compared on the same tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from moec.common.roofline import Roofline
from moec.placing.placement import ExpertPlacement
from moec.placing.volume import exchange
from moec.predicting.layers import Experts, LayerTime, MicroBatch, Schedule, simulate
from moec.predicting.links import Links

_MOST_DRAWN = 8192
"""Tokens of a layer whose experts are drawn by popularity; more tokens repeat them."""
_FITTING_STEPS = 50


@dataclasses.dataclass(frozen=True)
class RoutedLayer:
    """A layer of experts: ``k`` are selected by ``popularity`` [E], numbers above 0 of any sum, from ``kept`` of
    ``groups`` consecutive groups of experts. ``recorded`` [n,k]: experts that some tokens selected together, -1 for
    none."""

    experts: Experts
    k: int
    popularity: np.ndarray
    groups: int = 1
    kept: int = 1
    recorded: np.ndarray | None = None

    def drawn(self, tokens: int, seed: int) -> np.ndarray:
        """Draw the experts of tokens, int32 [T,k]."""
        random = np.random.default_rng(seed)
        if self.recorded is not None and len(self.recorded):
            weights = _fitted(self.recorded, self.popularity)
            return self.recorded[random.choice(len(weights), tokens, p=weights)]
        scores = np.log(self.popularity) + random.gumbel(size=(min(tokens, _MOST_DRAWN), len(self.popularity)))
        if self.kept < self.groups:
            best = scores.reshape(len(scores), self.groups, -1).max(axis=2)
            dropped = best < np.partition(best, -self.kept, axis=1)[:, -self.kept, None]
            scores[np.repeat(dropped, len(self.popularity) // self.groups, axis=1)] = -np.inf
        ids = np.argpartition(-scores, self.k - 1, axis=1)[:, : self.k].astype(np.int32)
        return ids if tokens <= len(ids) else ids[random.integers(len(ids), size=tokens)]


def _fitted(recorded: np.ndarray, popularity: np.ndarray) -> np.ndarray:
    """Compute weights [n] with which recorded tokens select experts as often as these are popular: few were recorded,
    while popularity is of all tokens. Generalized iterative scaling (Darroch and Ratcliff, 1972)."""
    chosen = np.zeros((len(recorded), len(popularity) + 1))
    np.put_along_axis(chosen, recorded.astype(np.int64), 1.0, 1)  # -1 is the last column
    chosen = chosen[:, :-1]
    expected = np.where(chosen.any(axis=0), popularity, 0)
    expected *= chosen.sum(axis=1).mean() / max(expected.sum(), np.finfo(float).tiny)
    weights = np.full(len(recorded), 1 / len(recorded))
    for _ in range(_FITTING_STEPS):
        actual = weights @ chosen
        ratio = np.log(np.divide(expected, actual, out=np.ones_like(expected), where=(actual > 0) & (expected > 0)))
        weights *= np.exp(chosen @ ratio / recorded.shape[1])
        weights /= weights.sum()
    return weights


@dataclasses.dataclass(frozen=True)
class DenseTimes:
    """Seconds of all parts of a run that every rank computes for its own tokens, ``dense``; and, apart from them, of
    what may run while rows travel, ``shared`` for each layer."""

    dense: float
    shared: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Workload:
    """A model: its ``layers`` of experts, and ``dense`` for a number of tokens of a rank."""

    layers: tuple[RoutedLayer, ...]
    dense: Callable[[int], DenseTimes]


@dataclasses.dataclass(frozen=True)
class Setup:
    """Machines and a way to use them. ``tokens``: of each rank; ``halves``: whether the halves of the tokens are two
    micro-batches."""

    roofline: Roofline
    links: Links
    placement: ExpertPlacement
    tokens: int
    schedule: Schedule
    halves: bool = False


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The predicted time of a run, layer by layer; dense parts are spread evenly over layers."""

    setup: Setup
    layers: tuple[LayerTime, ...]

    @property
    def seconds(self) -> float:
        return sum(layer.seconds for layer in self.layers)

    @property
    def seconds_per_token(self) -> float:
        """Seconds of the run over the tokens of all ranks."""
        return self.seconds / (self.setup.tokens * self.setup.placement.ranks)

    @property
    def exposed(self) -> float:
        """Share of the time that would not be there without communication."""
        return sum(layer.exposed * layer.seconds for layer in self.layers) / self.seconds if self.seconds else 0.0


def predict(workload: Workload, setup: Setup) -> Prediction:
    """Predict a run. ``setup.placement`` has the layers of the workload, in their order."""
    sizes = [setup.tokens // 2, setup.tokens - setup.tokens // 2] if setup.halves else [setup.tokens]
    times = [workload.dense(size) for size in sizes]
    parts = [_micro_batches(workload, setup, place, sizes, times) for place in range(len(workload.layers))]
    experts = [layer.experts for layer in workload.layers]
    return Prediction(setup, tuple(simulate(experts, parts, setup.roofline, setup.links, setup.schedule)))


def _micro_batches(
    workload: Workload, setup: Setup, place: int, sizes: Sequence[int], times: Sequence[DenseTimes]
) -> list[MicroBatch]:
    """Make the micro-batches of the layer at a ``place``."""
    placed, ranks = setup.placement, setup.placement.ranks
    ids = workload.layers[place].drawn(ranks * setup.tokens, place)
    of_ranks = np.split(ids, ranks)
    results, first = [], 0
    for size, own in zip(sizes, times, strict=True):
        counted = exchange(placed.layers[place], [each[first : first + size] for each in of_ranks], placed.nodes)
        results.append(MicroBatch(counted, own.dense / len(workload.layers), own.shared[place]))
        first += size
    return results
