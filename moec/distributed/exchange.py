"""The exchange of rows between ranks, as a program's calls ask for it (:class:`moec.runtime.ranks.Ranks`).

On its way out a row travels with its experts, int32 [k], and weights. With ``alltoall`` it goes once to each rank that
computes a pair of it, and the experts that others compute are -1. With ``allgather`` it goes to all ranks, unless its
owner computes all of its pairs; its experts are then numbered with the ranks that compute them. On its way back there
is one result per pair, with both transports: sums stay with the owner of a token, so that their order never depends on
ranks.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import time
from collections.abc import Callable, Iterator

import numpy as np

from moec.distributed.group import RankGroup
from moec.distributed.transport import Arrival, cut, swap, swap_counts
from moec.placing.placement import ExpertPlacement
from moec.placing.volume import COUNT_BYTES, Transport
from moec.runtime.ranks import ReceivedRows


@dataclasses.dataclass
class Traffic:
    """Bytes that this rank sent to others for one layer: rows on their way ``out``, with their experts, weights and
    counts, and results on their way ``back``."""

    out: int = 0
    back: int = 0


@dataclasses.dataclass(frozen=True)
class _Parcel:
    """Rows as bytes uint8 [n,w], with their experts int32 [n,k], and weights as bytes [n,v]; v is 0 without weights."""

    rows: np.ndarray
    experts: np.ndarray
    weights: np.ndarray


@dataclasses.dataclass(frozen=True)
class _RowForm:
    """Layout of a parcel of rows: all rows, then all experts, then all weights."""

    d: int
    dtype: np.dtype
    k: int
    weights: np.dtype | None

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Bytes of a row, its experts and its weights."""
        of_weights = 0 if self.weights is None else self.weights.itemsize
        return self.d * self.dtype.itemsize, self.k * 4, self.k * of_weights

    @property
    def bytes(self) -> int:
        """Bytes of a row with all that travels with it."""
        return sum(self.sizes)

    def rows_in(self, parcel: np.ndarray) -> _Parcel:
        """View a parcel, uint8 of any number of rows."""
        count = len(parcel) // self.bytes
        rows, experts, weights = cut(parcel, [count * size for size in self.sizes])
        of_row, _, of_weights = self.sizes
        experts = experts.view(np.int32).reshape(count, self.k)
        return _Parcel(rows.reshape(count, of_row), experts, weights.reshape(count, of_weights))


@dataclasses.dataclass
class _Sending:
    """The state of one layer's exchange between its calls. ``destinations`` [T,k]: the rank that computes each pair of
    this rank, -1 for none; ``counts``: pairs from each rank, once they are received."""

    form: _RowForm
    pairs: int
    own: _Parcel
    destinations: np.ndarray
    arrival: Arrival
    counts: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0, np.int64))


class RowExchange:
    """The exchange of this rank with all others, for experts placed by ``placement``.

    ``traffic`` counts bytes by layer. While :meth:`idle` is entered, this rank sends nothing of its own, and computes
    for the others."""

    def __init__(self, group: RankGroup, placement: ExpertPlacement, transport: Transport | None = None) -> None:
        self.group = group
        self.traffic = [Traffic() for _ in placement.layers]
        self._placement = placement
        self._transport = transport or placement.transport or "alltoall"
        self._idle = False
        self._sending: dict[int, _Sending] = {}
        self.waited = 0.0
        """Seconds that it has waited for rows and results on their way, for whoever sets it to 0 before."""
        self.meanwhile: Callable[[], None] = lambda: None
        """Called when rows or results of this rank are under way, before it waits for those of others."""
        self.announces = False
        """Whether runs are announced to ranks that may have no work left (:mod:`moec.distributed.lockstep`)."""

    def twin(self) -> RowExchange:
        """Make an exchange for runs in turn with those of this one: of the same group, placement and counts of
        bytes."""
        other = copy.copy(self)
        other._sending = {}
        return other

    def agreed(self, runs: int) -> int:
        """Announce that this rank begins so many runs, at once and in turn. Returns how many all ranks begin: the most
        that one announces, or 1 where runs are not announced."""
        return self.group.most(runs) if self.announces and not self._idle else 1

    def begin_run(self) -> None:
        """Begin a run of the program, and forget one that an error ended."""
        self._sending.clear()

    @contextlib.contextmanager
    def idle(self) -> Iterator[None]:
        """Context of runs on a dummy input: no pair of it is computed, whatever its experts."""
        self._idle = True
        try:
            yield
        finally:
            self._idle = False

    def send(self, layer: int, rows: np.ndarray, experts: np.ndarray, weights: np.ndarray | None) -> None:
        """Begin to send rows. See :class:`moec.runtime.ranks.Ranks`; raises LostRankError as all others."""
        form = _RowForm(rows.shape[1], rows.dtype, experts.shape[1], None if weights is None else weights.dtype)
        pairs = experts.size
        if self._idle:
            rows, experts, weights = rows[:0], experts[:0], None if weights is None else weights[:0]
        destinations = self._destinations(layer, experts)
        no_weights = np.empty((len(rows), 0), np.uint8)
        own = _Parcel(_as_bytes(rows), experts, no_weights if weights is None else _as_bytes(weights))
        with self.group.collective("dispatch of rows", layer):
            begin = self._begin_alltoall if self._transport == "alltoall" else self._begin_allgather
            arrival = begin(layer, form, own, destinations)
        self._sending[layer] = _Sending(form, pairs, own, destinations, arrival)
        self.meanwhile()

    def receive(self, layer: int) -> ReceivedRows:
        """Wait for the rows that this rank computes, one for each pair: by source rank, then token, then slot."""
        sending, rank = self._sending[layer], self.group.rank
        with self.group.collective("dispatch of rows", layer):
            parcels = self._arrived(sending.arrival)
        sources = [self._addressed(layer, sending.form.rows_in(parcel)) for parcel in parcels]
        sources[rank] = sending.own
        places = [
            np.nonzero(sending.destinations == rank if source == rank else rows.experts >= 0)
            for source, rows in enumerate(sources)
        ]
        sending.counts = np.array([len(tokens) for tokens, _ in places])
        return _expanded(sending.form, sources, places)

    def give_back(self, layer: int, results: np.ndarray) -> np.ndarray:
        """Return results [P,n] to the owners of their tokens, and those of this rank's pairs, [T*k,n]."""
        sending = self._sending.pop(layer)
        destinations = sending.destinations.ravel()
        pairs = np.argsort(destinations, kind="stable")[np.count_nonzero(destinations < 0) :]
        size = results.shape[1] * results.dtype.itemsize
        sent = sending.counts * size
        counts = np.bincount(destinations[pairs], minlength=self.group.size)
        with self.group.collective("return of rows", layer):
            arrival = swap(self.group, cut(_as_bytes(results).ravel(), sent), counts * size)
        self.meanwhile()
        with self.group.collective("return of rows", layer):
            parcels = self._arrived(arrival)
        self.traffic[layer].back += int(sent.sum() - sent[self.group.rank])
        own = np.zeros((sending.pairs, size), np.uint8)
        for places, parcel in zip(cut(pairs, counts), parcels, strict=True):
            own[places] = parcel.reshape(-1, size)
        return own.view(results.dtype)

    def _arrived(self, arrival: Arrival) -> tuple[np.ndarray, ...]:
        start = time.perf_counter()
        parcels = arrival.wait()
        self.waited += time.perf_counter() - start
        return parcels

    def _begin_alltoall(self, layer: int, form: _RowForm, own: _Parcel, destinations: np.ndarray) -> Arrival:
        ranks = self.group.size
        chosen = [np.flatnonzero((destinations == rank).any(axis=1)) for rank in range(ranks)]
        chosen[self.group.rank] = np.empty(0, np.intp)  # these stay where they are
        counts = np.array([len(tokens) for tokens in chosen], np.int64)
        received = swap_counts(self.group, counts)
        parcels = [np.empty(count * form.bytes, np.uint8) for count in counts]
        for rank, (tokens, parcel) in enumerate(zip(chosen, parcels, strict=True)):
            _pack(form.rows_in(parcel), own, tokens, destinations == rank)
        self.traffic[layer].out += int(counts.sum()) * form.bytes + (ranks - 1) * COUNT_BYTES
        return swap(self.group, parcels, received * form.bytes)

    def _begin_allgather(self, layer: int, form: _RowForm, own: _Parcel, destinations: np.ndarray) -> Arrival:
        ranks = self.group.size
        sent = (destinations >= 0) & (destinations != self.group.rank)
        tokens = np.flatnonzero(sent.any(axis=1))
        received = swap_counts(self.group, np.full(ranks, len(tokens), np.int64))
        message = np.empty(len(tokens) * form.bytes, np.uint8)
        numbered = own.experts + destinations * np.int32(self._placement.layers[layer].experts)
        _pack(form.rows_in(message), dataclasses.replace(own, experts=numbered), tokens, sent)
        self.traffic[layer].out += (ranks - 1) * (len(message) + COUNT_BYTES)
        return swap(self.group, [message] * ranks, received * form.bytes)

    def _addressed(self, layer: int, rows: _Parcel) -> _Parcel:
        """Replace the experts that other ranks compute by -1."""
        if self._transport == "alltoall":
            return rows
        ranks, experts = np.divmod(rows.experts, self._placement.layers[layer].experts)
        return dataclasses.replace(rows, experts=np.where(ranks == self.group.rank, experts, -1))

    def _destinations(self, layer: int, experts: np.ndarray) -> np.ndarray:
        placed, rank = self._placement.layers[layer], self.group.rank
        return np.where(experts >= 0, placed.destinations(experts, rank, self._placement.nodes), -1)


def _as_bytes(array: np.ndarray) -> np.ndarray:
    """View an array [n,m] as uint8 [n, m * itemsize]; copies what is not contiguous, or read-only."""
    array = np.require(array, requirements=["C", "W"])
    return array.reshape(-1).view(np.uint8).reshape(len(array), array.shape[1] * array.dtype.itemsize)


def _pack(into: _Parcel, rows: _Parcel, tokens: np.ndarray, sent: np.ndarray) -> None:
    """Copy the rows of ``tokens``, with -1 for the experts of pairs that are not ``sent``, a mask [T,k]."""
    rows.rows.take(tokens, 0, into.rows, "clip")  # the other modes copy twice
    rows.weights.take(tokens, 0, into.weights, "clip")
    into.experts[...] = np.where(sent[tokens], rows.experts[tokens], -1)


def _expanded(form: _RowForm, sources: list[_Parcel], places: list[tuple[np.ndarray, ...]]) -> ReceivedRows:
    """Copy the rows of pairs at ``places``, tokens and slots for each source."""
    counts = [len(tokens) for tokens, _ in places]
    rows = np.empty((sum(counts), form.d * form.dtype.itemsize), np.uint8)
    for source, (tokens, _), part in zip(sources, places, cut(rows, counts), strict=True):
        source.rows.take(tokens, 0, part, "clip")
    experts = np.concatenate([source.experts[place] for source, place in zip(sources, places, strict=True)])
    weights = None
    if form.weights is not None:
        typed = [source.weights.reshape(-1).view(form.weights).reshape(-1, form.k) for source in sources]
        weights = np.concatenate([values[place] for values, place in zip(typed, places, strict=True)])
    return ReceivedRows(rows.reshape(-1).view(form.dtype).reshape(-1, form.d), experts, weights)
