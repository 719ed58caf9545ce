"""Weights larger than memory: their layout, and the part of them that is loaded at the start.

Weights of experts that the program requests are streamed (:mod:`moec.runtime.streamed_experts`); all others are read
when the model is loaded and stay. They are in the process' private memory, so that the system cannot reclaim them when
it needs room for files.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence, Set

import numpy as np

from moec.common.errors import MoecError
from moec.common.specs import StreamedExpertsSpec
from moec.placing.placement import ExpertPlacement
from moec.runtime.direct_reads import PAGE, DirectReads, PendingRead, Range, read_now
from moec.runtime.manifest import ProgramEntry, WeightEntry
from moec.runtime.pages import Pages, Placement
from moec.runtime.reserved_memory import ReservedMemory
from moec.runtime.streamed_experts import StreamedExperts, StreamedLayer

_MIB = 1 << 20


@dataclasses.dataclass(frozen=True)
class StreamPlan:
    """Partition of the weights that a process reads into resident and streamed ones. ``layers``: places of the
    experts, by the number of the layer; ``own``: the experts (layer, expert) that the process computes; ``others``:
    ranges of the file with all weights that are no experts', which stay."""

    streamed: Sequence[StreamedExpertsSpec]
    layers: Sequence[StreamedLayer]
    own: Set[tuple[int, int]]
    others: Sequence[Range]

    @staticmethod
    def of(
        streamed: Sequence[StreamedExpertsSpec],
        entries: Sequence[WeightEntry],
        own: Set[tuple[int, int]] | None = None,
    ) -> StreamPlan:
        """Make a plan. ``entries``: the program's weights; their file may have others, of another stage. ``own``: None
        for all experts."""
        layers = [_layer(spec, entries) for spec in streamed]
        if own is None:
            own = {(number, expert) for number, spec in enumerate(streamed) for expert in range(spec.experts)}
        return StreamPlan(streamed, layers, own, list(_others(layers, list(_joined(entries)))))

    @property
    def pinned(self) -> int:
        """Bytes that stay in memory."""
        return sum(end - start for start, end in self.others) + sum(layer.edges for layer in self.layers)

    @property
    def size(self) -> int:
        """Bytes of the file that the process reads if all of its experts stay."""
        return sum(end - start for start, end in self.ranges())

    @property
    def experts(self) -> int:
        """Bytes of all own experts."""
        return sum(self.layers[layer].bytes_of(expert) for layer, expert in self.own)

    @property
    def least(self) -> int:
        """Bytes with which one token can run: those that stay, and the largest own experts of the layer that needs
        most."""
        sizes: list[list[int]] = [[] for _ in self.layers]
        for layer, expert in self.own:
            sizes[layer].append(self.layers[layer].bytes_of(expert))
        most = [sum(sorted(own, reverse=True)[: spec.chosen]) for own, spec in zip(sizes, self.streamed, strict=True)]
        return self.pinned + max(most, default=0)

    @property
    def order(self) -> list[tuple[int, int]]:
        """Order in which own experts (layer, expert) are read first: those with the largest shares, or by their number
        where none were measured."""

        def rank(place: tuple[int, int]) -> tuple[float, int, int]:
            layer, expert = place
            shares = self.streamed[layer].shares
            return -shares[expert] if shares else 0.0, expert, layer

        return sorted(self.own, key=rank)

    def ranges(self) -> list[Range]:
        """List the ranges of the file with own experts, and with all weights that stay."""
        places = (place for layer, expert in sorted(self.own) for place in self.layers[layer].places[expert])
        return [*self.others, *places]

    def check(self, resident: int, where: str) -> None:
        """Raise MoecError, with the numbers, where one token cannot run in so many bytes."""
        if resident < min(self.least, self.size):
            raise MoecError(
                f"{where}: {resident / _MIB:.1f} MiB are too few for its weights: one token needs the weights "
                "outside of "
                f"experts and its experts of a layer, {self.least / _MIB:.1f} of {self.size / _MIB:.1f} MiB; give it "
                "at least those (resident)"
            )


def own_experts(
    streamed: Sequence[StreamedExpertsSpec], placement: ExpertPlacement | None, rank: int
) -> set[tuple[int, int]]:
    """List the experts (layer, expert) that a rank computes: its own, and all of layers that are not placed."""
    return {
        (number, expert)
        for number, layer in enumerate(streamed)
        for expert in (
            range(layer.experts)
            if placement is None or layer.placed is None
            else placement.layers[layer.placed].slots[rank]
        )
    }


def place_streamed(
    path: pathlib.Path,
    program: ProgramEntry,
    entries: Sequence[WeightEntry],
    resident: int | None,
    where: str,
    preferred: float = 0.0,
    own: Set[tuple[int, int]] | None = None,
) -> tuple[np.ndarray, StreamedExperts, Placement]:
    """Load a file of weights, with at most ``resident`` bytes in memory at a time, and no experts (layer, expert)
    except ``own``; None: all. ``preferred``: see :class:`StreamedExperts`.

    Raises MoecError where one token needs more; ArtifactError where the file cannot be read; OSError.
    """
    plan = StreamPlan.of(program.streamed, entries, own)
    room = plan.experts
    if resident is not None:
        plan.check(resident, where)
        room = min(room, resident - plan.pinned)
    size = path.stat().st_size
    memory = ReservedMemory(size)
    memory.open([(0, size)] if own is None else plan.ranges())
    reads = DirectReads(path, memory.array)
    read_now(reads, PendingRead("what is no expert's", plan.others), str(path))
    experts = StreamedExperts(reads, memory.mapping, plan.layers, room, str(path), preferred, own)
    experts.fill(plan.order)
    kept = f"{experts.room / _MIB:.1f} of {plan.experts / _MIB:.1f} MiB"
    reason = f"there is room for {kept} of experts; others are read when they are chosen, or expected"
    if own is not None and experts.has_room_for_all:
        reason = f"this rank holds {kept} of experts, which are its own"
    return memory.array[:size], experts, Placement("streamed", reason)


def check_replaceable(program: ProgramEntry, pages: Pages, where: str) -> None:
    """Raise MoecError for a program in which no expert can take the place of one that is not in memory."""
    if pages in ("mapped", "huge"):
        raise MoecError(f"{where}: prefer_resident is about experts that are read when chosen, and pages is '{pages}'")
    if not any(layer.replaceable for layer in program.streamed):
        reason = "no router of it can prefer experts" if program.streamed else "was compiled to have all in memory"
        raise MoecError(f"{where}: {reason}; load it without prefer_resident, or compile it with --resident")


def _layer(spec: StreamedExpertsSpec, entries: Sequence[WeightEntry]) -> StreamedLayer:
    def places(expert: int) -> Iterator[Range]:
        for part in spec.weights:
            offset = entries[part.weight].offset
            start, end = part.starts[expert], part.starts[expert + 1]
            if end > start:
                yield offset + start, offset + end

    return StreamedLayer(spec.name, [tuple(places(expert)) for expert in range(spec.experts)])


def _joined(entries: Sequence[WeightEntry]) -> Iterator[Range]:
    """Ranges of weights that follow one another, with the bytes between them that align the next one."""
    start = end = 0
    for entry in sorted(entries, key=lambda entry: entry.offset):
        if entry.offset - end >= PAGE:
            if end > start:
                yield start, end
            start = entry.offset
        end = max(end, entry.offset + entry.bytes)
    if end > start:
        yield start, end


def _others(layers: Sequence[StreamedLayer], ranges: Sequence[Range]) -> Iterator[Range]:
    """Parts of the ranges between those of experts, which are inside of them."""
    places = sorted(place for layer in layers for places in layer.places for place in places)
    for start, end in ranges:
        for first, last in (place for place in places if start <= place[0] < end):
            if first > start:
                yield start, first
            start = max(start, last)
        if end > start:
            yield start, end
