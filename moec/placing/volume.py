"""Bytes that the ranks of a distributed run exchange for one layer of experts, exactly and as expected values.

Two transports carry rows to the ranks that compute them:

``alltoall``   A rank sends a row once to each other rank that computes a pair of it, after an exchange of counts.
``allgather``  A rank sends a row to all other ranks unless it computes all pairs of it.

Both return one result per pair to the rank that owns the token. Bytes between a rank and itself do not count.

For R ranks, k experts per token and experts that are chosen independently and evenly, a token of ``row`` bytes has the
expected volume ``row (R-1) (1 - (1-1/R)^k)`` (``alltoall``) or ``row (R-1) (1 - R^-k)`` (``allgather``) on its way out,
and results of ``result`` bytes have ``result k (R-1) / R`` on their way back. With replicas, the share of a token's
pairs that a rank computes takes the place of 1/R.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from moec.common.errors import MoecError
from moec.placing.placement import TRANSPORTS, LayerPlacement, Transport

COUNT_BYTES = np.dtype(np.int64).itemsize
"""Bytes of the count that each rank sends to each other one before its rows."""
MARGIN = 0.1
"""Share of additional bytes up to which ``allgather`` is chosen: its volume is the same whatever the tokens choose."""


@dataclasses.dataclass(frozen=True)
class RowBytes:
    """Bytes of one row on its way ``out``, with the ids and weights that travel with it, and of the ``back`` result of
    one pair. ``counts``: what a rank sends to each other rank before the rows, such as how many there are."""

    out: int
    back: int
    counts: int = 0


@dataclasses.dataclass(frozen=True)
class Exchange:
    """Numbers of rows in one exchange, int64. ``leaving`` [R]: tokens of rank r with a pair that another rank computes;
    ``rows`` [R,R]: tokens of rank r with a pair that rank s computes; ``pairs`` [R,R]: pairs of rank r that rank s
    computes; ``loads`` [R,E]: pairs of expert e that rank r computes."""

    leaving: np.ndarray
    rows: np.ndarray
    pairs: np.ndarray
    loads: np.ndarray


@dataclasses.dataclass(frozen=True)
class Sent:
    """Bytes from rank r to rank s, int64 [R,R] with zeros on the diagonal: rows on their way ``out``, ``counts``
    included, and results on their way ``back``."""

    out: np.ndarray
    back: np.ndarray

    def by(self, rank: int) -> int:
        """Sum up the bytes that a rank sends."""
        return int(self.out[rank].sum() + self.back[rank].sum())

    @property
    def total(self) -> int:
        """Bytes that all ranks send."""
        return int(self.out.sum() + self.back.sum())


def exchange(layer: LayerPlacement, experts: Sequence[np.ndarray], nodes: int = 1) -> Exchange:
    """Count the rows between ranks. ``experts``: for each rank the ids int [T,k] of its tokens, -1 for a pair that is
    not computed; T may differ between ranks. Raises MoecError for ids of another number of ranks."""
    ranks = len(layer.slots)
    if len(experts) != ranks:
        raise MoecError(f"placement of {layer.name!r}: expected ids of {ranks} ranks, found those of {len(experts)}")
    rows, pairs = np.zeros((2, ranks, ranks), np.int64)
    leaving = np.zeros(ranks, np.int64)
    loads = np.zeros(ranks * layer.experts, np.int64)
    for rank, ids in enumerate(experts):
        computed = ids >= 0
        destinations = layer.destinations(ids, rank, nodes)
        pairs[rank] = np.bincount(destinations[computed], minlength=ranks)
        reached = np.zeros((len(ids), ranks), bool)
        reached[np.nonzero(computed)[0], destinations[computed]] = True
        rows[rank] = reached.sum(axis=0)
        reached[:, rank] = False
        leaving[rank] = reached.any(axis=1).sum()
        weighted = computed & (ids < layer.experts)
        slots = destinations[weighted] * layer.experts + ids[weighted]
        loads += np.bincount(slots, minlength=len(loads))
    return Exchange(leaving, rows, pairs, loads.reshape(ranks, layer.experts))


def bytes_sent(counted: Exchange, width: RowBytes, transport: Transport) -> Sent:
    """Compute the bytes between ranks of one exchange, exactly. A rank that has no row for another one still sends
    its counts."""
    ranks = len(counted.leaving)
    rows = counted.rows if transport == "alltoall" else np.repeat(counted.leaving[:, None], ranks, axis=1)
    others = ~np.eye(ranks, dtype=bool)
    return Sent((rows * width.out + width.counts) * others, counted.pairs.T * width.back * others)


def expected_bytes(layer: LayerPlacement, k: int, width: RowBytes, transport: Transport, nodes: int = 1) -> float:
    """Compute the expected bytes per token, out and back and without counts, for experts that are chosen independently
    and evenly."""
    ranks = len(layer.slots)
    share = np.array([layer.shares_from(rank, nodes) for rank in range(ranks)])  # [from, to]
    own, others = share.diagonal(), ~np.eye(ranks, dtype=bool)
    reached = (1 - (1 - share[others]) ** k).sum() if transport == "alltoall" else (ranks - 1) * (1 - own**k).sum()
    return float(width.out * reached + width.back * k * (1 - own).sum()) / ranks


def recorded_bytes(
    layer: LayerPlacement, experts: np.ndarray, width: RowBytes, transport: Transport, nodes: int = 1
) -> float:
    """Compute the mean bytes per token, out and back and without counts, of recorded tokens with ``experts`` int [T,k]
    that each rank has once; T is at least 1."""
    ranks = len(layer.slots)
    counted = exchange(layer, [experts] * ranks, nodes)
    return bytes_sent(counted, dataclasses.replace(width, counts=0), transport).total / (ranks * len(experts))


@dataclasses.dataclass(frozen=True)
class TransportChoice:
    """A transport, with the ``reason`` in words."""

    transport: Transport
    reason: str


def choose_transport(
    layer: LayerPlacement, k: int, width: RowBytes, nodes: int = 1, recorded: np.ndarray | None = None
) -> TransportChoice:
    """Choose a transport by the bytes per token of a placed layer: ``allgather`` where it sends at most :data:`MARGIN`
    more. ``recorded`` [T,k]: experts of tokens; without any, experts are taken to be chosen evenly."""
    is_known = recorded is not None and len(recorded) > 0
    gathered, exchanged = (
        recorded_bytes(layer, recorded, width, transport, nodes)
        if is_known
        else expected_bytes(layer, k, width, transport, nodes)
        for transport in TRANSPORTS
    )
    if not exchanged:
        return TransportChoice("alltoall", "ranks compute all of their own tokens, so nothing is sent")
    more = f"{gathered / exchanged - 1:.0%} more"
    words = f"{_kilobytes(gathered)} per token and layer in place of {_kilobytes(exchanged)}"
    words += ", by the profile" if is_known else ""
    if gathered == exchanged:
        return TransportChoice("alltoall", f"allgather would send as much ({_kilobytes(gathered)} per token and layer)")
    if gathered <= exchanged * (1 + MARGIN):
        return TransportChoice(
            "allgather",
            f"sends {more} than alltoall ({words}), at most {MARGIN:.0%}, and about as much whatever the tokens choose",
        )
    return TransportChoice("alltoall", f"allgather would send {more} ({words}), above {MARGIN:.0%}")


@dataclasses.dataclass(frozen=True)
class ExchangedLayer:
    """A placed layer whose tokens select ``k`` experts, with the bytes of its rows; ``recorded``: as
    :func:`choose_transport` takes it."""

    layer: LayerPlacement
    k: int
    width: RowBytes
    recorded: np.ndarray | None = None


def choose_for_all(layers: Sequence[ExchangedLayer], nodes: int = 1) -> TransportChoice:
    """Choose the transport of a model, by the layer whose rows are largest: every layer has the same. ``layers``: those
    whose rows have known sizes."""
    if not layers:
        return TransportChoice("alltoall", "sizes of rows are not known")
    largest = max(layers, key=lambda each: each.k * each.width.out)
    return choose_transport(largest.layer, largest.k, largest.width, nodes, largest.recorded)


def _kilobytes(count: float) -> str:
    return f"{count / 1e3:.3g} kB"
