"""The experts of a model with more weights than the memory that they may take.

Address space is reserved for all weights, at their places in the file, so that kernels find every expert at a fixed
address. Only some experts have memory. Selected experts that are missing are read before their layer computes; experts
that a later layer is expected to select are read while others compute; and the pages of the least selected ones go back
to the system.

A selection counts less the longer ago it was (:data:`FORGETTING`). On a trained model this keeps the right experts more
often than dropping the least recently used one (benchmarks/results/streaming.md).
"""

from __future__ import annotations

import dataclasses
import mmap
from collections.abc import Sequence, Set

import numpy as np

from moec.common.errors import RoomError
from moec.runtime.direct_reads import PAGE, DirectReads, PendingRead, Range, unreadable
from moec.runtime.expert_pages import ExpertPages, own_pages

FORGETTING = 0.99
"""Weight of a selection one run of the model later."""
_MOST = 1e100
_MIB = 1 << 20


@dataclasses.dataclass
class StreamCounts:
    """Counts since the model was loaded.

    ``chosen``: experts that layers selected, of which ``there`` were in memory at once and ``guessed`` were read, or
    being read, because they had been expected. ``expected``: experts that were read ahead.
    """

    runs: int = 0
    chosen: int = 0
    there: int = 0
    guessed: int = 0
    expected: int = 0
    bytes_read: int = 0


@dataclasses.dataclass(frozen=True)
class StreamedLayer:
    """The experts of one layer. ``places``: for each expert the ranges of its weights in the file."""

    name: str
    places: Sequence[Sequence[Range]]

    def bytes_of(self, expert: int) -> int:
        """Count the bytes of the pages that come and go with an expert."""
        return sum(last - first for first, last in map(own_pages, self.places[expert]))

    @property
    def edges(self) -> int:
        """Bytes of the pages that experts share with their neighbours in the file. They stay once they were read."""
        ends = (end for places in self.places for place in places for end in place if end % PAGE)
        return PAGE * len({end // PAGE for end in ends})


_ABSENT, _COMING, _THERE = range(3)


class StreamedExperts:
    """Experts in ``room`` bytes of memory. Calls come from one thread at a time, in the order of layers.

    ``preferred``: share of its weight that may be lost where an expert in memory takes the place of one that is not. If
    it is more than 0, nothing is read ahead, because the experts in memory, and with them the results, would depend on
    the disk's speed.
    """

    def __init__(
        self,
        reads: DirectReads,
        mapping: mmap.mmap,
        layers: Sequence[StreamedLayer],
        room: int,
        where: str,
        preferred: float = 0.0,
        own: Set[tuple[int, int]] | None = None,
    ) -> None:
        """``mapping``: the memory that ``reads`` fills. ``where``: the file. ``own``: the experts (layer, expert) that
        this process computes; None for all."""
        self._own = own
        self.preferred = preferred
        self.counts = StreamCounts()
        self.room, self.used = room, 0
        self._reads, self._pages, self._where = reads, ExpertPages(mapping), where
        self._layers = layers
        self._first = np.cumsum([0, *(len(layer.places) for layer in layers)]).tolist()
        self._readings = [
            PendingRead(f"expert {expert} of {layer.name!r}", places)
            for layer in layers
            for expert, places in enumerate(layer.places)
        ]
        self._bytes = np.array([layer.bytes_of(expert) for layer in layers for expert in range(len(layer.places))], int)
        self._state = np.full(len(self._bytes), _ABSENT, np.int8)
        self._score, self._weight = np.zeros(len(self._bytes)), 1.0
        self._chosen = np.zeros(len(self._bytes), np.int64)
        self._kept = np.zeros(len(self._bytes), bool)  # those that compute now
        self._read_before = 0
        self._guesses: list[int] = []  # to be read after the urgent ones are requested
        self._ahead: set[int] = set()  # requested because they were expected, and not selected yet

    @property
    def has_room_for_all(self) -> bool:
        """Whether there is room for all experts that this process computes."""
        own = np.arange(len(self._bytes)) if self._own is None else [self._first[layer] + at for layer, at in self._own]
        return int(self._bytes[own].sum()) <= self.room

    @property
    def chosen(self) -> list[np.ndarray]:
        """Number of runs in which each expert was selected, int64 [E] for each layer."""
        return np.split(self._chosen, self._first[1:-1])

    @property
    def shares(self) -> list[list[float]]:
        """Share of the runs in which each expert was selected, by layer."""
        shares: list[np.ndarray] = [chosen / max(1, self.counts.runs) for chosen in self.chosen]
        return [part.tolist() for part in shares]

    def begin_run(self) -> None:
        """Begin another run of the model."""
        self.counts.runs += 1
        self._weight /= FORGETTING
        if self._weight > _MOST:
            self._score /= self._weight
            self._weight = 1.0
        self._guesses.clear()
        with self._reads.changed:
            for key in list(self._ahead):  # of a run that failed
                self._drop(key)

    def fill(self, order: Sequence[tuple[int, int]]) -> None:
        """Read experts (layer, expert) in this order until there is no more room, and wait for them. Earlier ones are
        kept longer. Raises ArtifactError."""
        keys = [self._first[layer] + expert for layer, expert in order]
        sizes = np.cumsum(self._bytes[keys]) if keys else np.zeros(0)
        keys = keys[: int(np.searchsorted(sizes, self.room - self.used, side="right"))]
        self._score[keys] = np.linspace(1, 0.5, len(keys))
        with self._reads.changed:
            for key in keys:
                self._ask(key, urgent=True)
            self._wait_for(keys)
            self._read_before = self._reads.bytes_read

    def expect(self, layer: int, experts: Sequence[int]) -> None:
        """Announce experts that will probably be selected, the likeliest first. Reading begins in the next
        :meth:`need`."""
        if self.preferred:
            return
        first = self._first[layer]
        own = [int(expert) for expert in experts if self._own is None or (layer, int(expert)) in self._own]
        self._guesses += [first + expert for expert in own]

    def tolerance(self, layer: int) -> np.ndarray:
        """Return for each expert of a layer, float32 [E], the share of its weight that may be lost where another takes
        its place, and 0 for those in memory."""
        absent = self._state[self._first[layer] : self._first[layer + 1]] != _THERE
        return np.where(absent, np.float32(self.preferred), np.float32(0))

    def need(self, layer: int, experts: Sequence[int]) -> None:
        """Return when these experts are in memory; they stay until the next call. Raises RoomError where there is no
        room for all of them, ArtifactError where one cannot be read."""
        first = self._first[layer]
        keys = [first + int(expert) for expert in experts]
        self._check_room(layer, keys)
        with self._reads.changed:
            self._settle()
            self._kept[:] = False
            self._kept[keys] = True
            self._score[keys] += self._weight
            self._chosen[keys] += 1
            self._count(keys)
            self._forget_wrong_guesses(layer)
            self._ask_for(keys)
            self._read_ahead()
            self._wait_for(keys)
            self.counts.bytes_read = self._reads.bytes_read - self._read_before

    def _check_room(self, layer: int, keys: Sequence[int]) -> None:
        needed = int(self._bytes[keys].sum())
        if needed > self.room:
            raise RoomError(
                f"{len(keys)} experts of {self._layers[layer].name!r} are chosen in one run, which take "
                f"{needed / _MIB:.1f} MiB, and there is room for {self.room / _MIB:.1f} MiB of experts; run fewer "
                f"tokens at a time, or give the model {needed - self.room} bytes more memory (resident)"
            )

    def _settle(self) -> None:
        """Mark finished readings as in memory, and failed ones as absent, so that they may be requested again."""
        for key in np.flatnonzero(self._state == _COMING):
            reading = self._readings[key]
            if not reading.left:
                self._state[key] = _THERE
                if reading.error is not None or reading.dropped:
                    self._pages.release(reading.ranges)
                    self._absent(int(key))

    def _count(self, keys: Sequence[int]) -> None:
        counts = self.counts
        counts.chosen += len(keys)
        for key in keys:
            counts.there += int(self._state[key] == _THERE)
            counts.guessed += key in self._ahead
        self._ahead.difference_update(keys)

    def _forget_wrong_guesses(self, layer: int) -> None:
        """Drop the reading of experts that were expected of this layer and not selected, as far as it has not begun."""
        of_layer = range(self._first[layer], self._first[layer + 1])
        for key in [key for key in self._ahead if key in of_layer]:
            self._drop(key)
        self._settle()

    def _ask_for(self, keys: Sequence[int]) -> None:
        for key in keys:
            if self._state[key] == _COMING:
                self._reads.hurry(self._readings[key])
            while self._state[key] == _COMING and self._readings[key].dropped:
                self._wait()
        for key in keys:
            if self._state[key] == _ABSENT:
                while not self._make_room(key):
                    if self._ahead:
                        self._drop(next(iter(self._ahead)))
                        self._settle()
                    else:
                        self._wait()
                self._ask(key, urgent=True)

    def _read_ahead(self) -> None:
        for key in self._guesses:
            if self._state[key] == _ABSENT:
                if not self._make_room(key):
                    break
                self._ahead.add(key)
                self.counts.expected += 1
                self._ask(key, urgent=False)
            elif self._state[key] == _THERE:
                self._ahead.add(key)
        self._guesses.clear()

    def _ask(self, key: int, *, urgent: bool) -> None:
        self._state[key] = _COMING
        self.used += int(self._bytes[key])
        self._reads.ask(self._readings[key], urgent=urgent)

    def _drop(self, key: int) -> None:
        """Drop the reading of an expert that is only expected. Its pages stay until the pieces that were begun are
        read."""
        self._ahead.discard(key)
        if self._state[key] == _COMING:
            self._reads.drop(self._readings[key])

    def _make_room(self, key: int) -> bool:
        """Take pages of other experts until one more has room. Returns False where all experts in memory are needed."""
        while self.used + self._bytes[key] > self.room:
            free = (self._state == _THERE) & ~self._kept
            free[list(self._ahead)] = False
            candidates = np.flatnonzero(free)
            if not candidates.size:
                return False
            victim = int(candidates[np.argmin(self._score[candidates])])
            if not self._pages.move(self._readings[victim].ranges, self._readings[key].ranges):
                self._pages.release(self._readings[victim].ranges)
            self._absent(victim)
        return True

    def _absent(self, key: int) -> None:
        self._state[key] = _ABSENT
        self.used -= int(self._bytes[key])

    def _wait(self) -> None:
        """Wait for any reading to end."""
        self._reads.changed.wait()
        self._settle()

    def _wait_for(self, keys: Sequence[int]) -> None:
        coming = [self._readings[key] for key in keys if self._state[key] == _COMING]
        while any(reading.left for reading in coming):
            self._reads.changed.wait()
        self._settle()
        failed = next((reading for reading in coming if reading.error is not None), None)
        if failed is not None:
            raise unreadable(self._where, failed)
