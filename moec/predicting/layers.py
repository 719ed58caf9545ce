"""Times of expert layers on several ranks: events of each layer and micro-batch, on a clock per rank.

A layer of a micro-batch has four steps: the dense parts of the rank's own tokens, rows on their way out, products of
the experts on the rows that arrive, and results on their way back. A rank computes one thing at a time and sends one
thing at a time, both at once. An exchange begins when the last rank is ready for it. With two micro-batches, the halves
of the tokens, one computes while rows of the other travel; a shared expert may run while rows travel, too.

Products take the least time of the roofline (:mod:`moec.common.roofline`), so a measured time is longer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from moec.common.roofline import Roofline
from moec.common.work import GroupedWork, Work
from moec.placing.volume import Exchange, RowBytes, Sent, Transport, bytes_sent
from moec.predicting.links import FREE, Links


@dataclasses.dataclass(frozen=True)
class Experts:
    """The experts of a layer: their ``products`` by matrices, the bytes of a row that travels, and ``value_bytes`` of a
    number in rows that products read and write."""

    name: str
    products: tuple[GroupedWork, ...]
    width: RowBytes
    value_bytes: int = 4

    def seconds(self, loads: np.ndarray, roofline: Roofline) -> float:
        """Compute the least time of all products on a rank with ``loads`` [E] rows of each expert."""
        rows = int(loads.sum())
        return sum(self._product_seconds(product, loads, rows, roofline) for product in self.products)

    def _product_seconds(self, product: GroupedWork, loads: np.ndarray, rows: int, roofline: Roofline) -> float:
        moved = rows * (product.inner + product.width) * self.value_bytes
        work = product.of_rows(loads) + Work(0, moved)
        return roofline.seconds(work.operations or 0, work.bytes_moved, work.arithmetic)


@dataclasses.dataclass(frozen=True)
class MicroBatch:
    """One micro-batch of a layer: the rows that it exchanges, and seconds that every rank takes for its ``dense`` parts
    before the exchange and for a ``shared`` expert."""

    counted: Exchange
    dense: float = 0.0
    shared: float = 0.0


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Choices of a run's exchanges. ``overlap_shared``: whether a shared expert runs while rows travel."""

    transport: Transport
    overlap_shared: bool = True


@dataclasses.dataclass(frozen=True)
class LayerTime:
    """One layer: ``seconds`` of all micro-batches, and of its steps on the slowest rank: ``out``, ``experts`` and
    ``back``. ``exposed``: the share of the time that would not be there without communication. ``imbalance``: rows of
    the rank with most of them over the mean of ranks; 1 without rows. ``sent``: bytes that all ranks send."""

    name: str
    seconds: float
    out: float
    experts: float
    back: float
    exposed: float
    imbalance: float
    sent: int


@dataclasses.dataclass(frozen=True)
class _Steps:
    """Seconds of the steps of a micro-batch on each rank, [R]."""

    part: MicroBatch
    out: np.ndarray
    experts: np.ndarray
    back: np.ndarray


def simulate(
    layers: Sequence[Experts],
    parts: Sequence[Sequence[MicroBatch]],
    roofline: Roofline,
    links: Links,
    schedule: Schedule,
) -> list[LayerTime]:
    """Predict the time of each layer. ``parts``: the micro-batches of each layer, equally many of all."""
    steps, sent = [], []
    for layer, own in zip(layers, parts, strict=True):
        volumes = [bytes_sent(part.counted, layer.width, schedule.transport) for part in own]
        computed = [_computed(layer, part, roofline) for part in own]
        steps.append([_steps(*each, layer, links) for each in zip(own, computed, volumes, strict=True)])
        sent.append(sum(volume.total for volume in volumes))
    ends = _ends(steps, schedule)
    free = _ends([[_without_links(each) for each in row] for row in steps], schedule)
    whole, alone = (np.diff(each, prepend=0.0) for each in (ends, free))
    return [
        LayerTime(
            layer.name,
            float(whole[place]),
            *(float(sum(getattr(each, step).max() for each in steps[place])) for step in ("out", "experts", "back")),
            exposed=max(0.0, float(1 - alone[place] / whole[place])) if whole[place] else 0.0,
            imbalance=_imbalance(parts[place]),
            sent=sent[place],
        )
        for place, layer in enumerate(layers)
    ]


def _computed(layer: Experts, part: MicroBatch, roofline: Roofline) -> np.ndarray:
    return np.array([layer.seconds(loads, roofline) for loads in part.counted.loads])


def _steps(part: MicroBatch, computed: np.ndarray, volume: Sent, layer: Experts, links: Links) -> _Steps:
    ranks = len(computed)
    if ranks == 1:
        return _Steps(part, np.zeros(1), computed, np.zeros(1))
    counts = np.full((ranks, ranks), layer.width.counts) * ~np.eye(ranks, dtype=bool)
    out = links.alltoall(volume.out - counts)
    if layer.width.counts:  # they come before rows
        out = out + links.alltoall(counts)
    return _Steps(part, out, computed, links.alltoall(volume.back))


def _without_links(steps: _Steps) -> _Steps:
    free = Links(FREE, FREE).alltoall(np.zeros((len(steps.out), len(steps.out))))
    return dataclasses.replace(steps, out=free, back=free)


def _imbalance(parts: Sequence[MicroBatch]) -> float:
    rows = sum(part.counted.loads.sum(axis=1) for part in parts)
    mean = float(np.mean(rows))
    return float(np.max(rows)) / mean if mean else 1.0


def _ends(steps: Sequence[Sequence[_Steps]], schedule: Schedule) -> np.ndarray:
    """Run the events and return the time at which each layer has ended, [layers]."""
    ranks = len(steps[0][0].out) if steps else 0
    computing, sending = np.zeros(ranks), np.zeros(ranks)
    ready = [np.zeros(ranks) for _ in steps[0]] if steps else []
    ends = []
    for layer in steps:
        arrived = []
        for place, step in enumerate(layer):
            before = step.part.dense + (0.0 if schedule.overlap_shared else step.part.shared)
            computing = np.maximum(computing, ready[place]) + before
            sending = np.maximum(computing, sending).max() + step.out
            arrived.append(sending)
            computing = computing + (step.part.shared if schedule.overlap_shared else 0.0)
        for place, step in enumerate(layer):
            computing = np.maximum(computing, arrived[place]) + step.experts
            sending = np.maximum(computing, sending).max() + step.back
            ready[place] = sending
        ends.append(max(float(times.max()) for times in ready))
    return np.array(ends)
