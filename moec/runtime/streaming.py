"""Weights larger than memory: where they lie, and what of them is there from the start.

Weights of experts that the program asks for are streamed (:mod:`moec.runtime.streamed_experts`); all others are read
when the model is loaded and stay. Memory that holds them is the process' own, so that the system, when it needs room
for files, takes nothing that the next token reads.
"""

from __future__ import annotations

import contextlib
import dataclasses
import mmap
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from moec.common.specs import StreamedExpertsSpec
from moec.errors import MoecError
from moec.runtime.direct_reads import PAGE, DirectReads, Range, Reading, read_now
from moec.runtime.manifest import ProgramEntry, WeightEntry
from moec.runtime.pages import Pages, Placement
from moec.runtime.streamed_experts import StreamedExperts, StreamedLayer

_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)
_MIB = 1 << 20


@dataclasses.dataclass(frozen=True)
class StreamPlan:
    """What stays in memory of a program's weights, and what comes and goes. ``layers``: where experts lie, by the
    number of the layer; ``others``: ranges of the file, of ``size`` bytes, that hold other weights; they stay."""

    streamed: Sequence[StreamedExpertsSpec]
    layers: Sequence[StreamedLayer]
    others: Sequence[Range]
    size: int

    @staticmethod
    def of(streamed: Sequence[StreamedExpertsSpec], entries: Sequence[WeightEntry], size: int) -> StreamPlan:
        """``entries``: of the program's weights; ``size``: bytes of their file."""
        layers = [_layer(spec, entries) for spec in streamed]
        return StreamPlan(streamed, layers, list(_others(layers, size)), size)

    @property
    def pinned(self) -> int:
        """Bytes that stay in memory."""
        return sum(end - start for start, end in self.others) + sum(layer.edges for layer in self.layers)

    @property
    def experts(self) -> int:
        """Bytes of all experts."""
        return sum(layer.bytes_of(expert) for layer in self.layers for expert in range(len(layer.places)))

    @property
    def least(self) -> int:
        """Bytes with which one token can run: those that stay, and the largest experts of the layer that asks for
        most."""
        most = [
            sum(sorted((layer.bytes_of(expert) for expert in range(spec.experts)), reverse=True)[: spec.chosen])
            for spec, layer in zip(self.streamed, self.layers, strict=True)
        ]
        return self.pinned + max(most, default=0)

    @property
    def order(self) -> list[tuple[int, int]]:
        """Experts (layer, expert) as they are read at first: those with the largest shares before others; where none
        were measured, as they are numbered."""
        every = [
            (layer.shares[expert] if layer.shares else 0.0, number, expert)
            for number, layer in enumerate(self.streamed)
            for expert in range(layer.experts)
        ]
        return [(number, expert) for _, number, expert in sorted(every, key=lambda one: (-one[0], one[2], one[1]))]

    def check(self, resident: int, where: str) -> None:
        """Raises MoecError, with the numbers, where one token cannot run in so many bytes."""
        if resident < min(self.least, self.size):
            raise MoecError(
                f"{where}: {resident / _MIB:.1f} MiB are too few for its weights: those that are no experts', and the "
                f"experts that one token has in a layer, take {self.least / _MIB:.1f} of {self.size / _MIB:.1f} MiB; "
                "give it at least those (resident)"
            )


def place_streamed(
    path: pathlib.Path,
    program: ProgramEntry,
    entries: Sequence[WeightEntry],
    resident: int,
    where: str,
    preferred: float = 0.0,
) -> tuple[np.ndarray, StreamedExperts, Placement]:
    """The bytes of a file of weights, of which at most ``resident`` are in memory at a time. ``preferred``:
    :class:`StreamedExperts`.

    Raises MoecError where one token needs more; ArtifactError where the file cannot be read; OSError.
    """
    size = path.stat().st_size
    plan = StreamPlan.of(program.streamed, entries, size)
    plan.check(resident, where)
    mapping, memory = reserved(size)
    reads = DirectReads(path, memory)
    read_now(reads, Reading("what is no expert's", plan.others), str(path))
    experts = StreamedExperts(reads, mapping, plan.layers, resident - plan.pinned, str(path), preferred)
    experts.fill(plan.order)
    kept = f"{experts.room / _MIB:.1f} of {plan.experts / _MIB:.1f} MiB"
    reason = f"there is room for {kept} of experts; others are read when they are chosen, or expected"
    return memory[:size], experts, Placement("streamed", reason)


def check_replaceable(program: ProgramEntry, pages: Pages, where: str) -> None:
    """Raises MoecError for a program in which no expert can take the place of one that is not in memory."""
    if pages in ("mapped", "huge"):
        raise MoecError(f"{where}: prefer_resident is about experts that are read when chosen, and pages is '{pages}'")
    if not any(layer.replaceable for layer in program.streamed):
        reason = "no router of it can prefer experts" if program.streamed else "was compiled to have all in memory"
        raise MoecError(f"{where}: {reason}; load it without prefer_resident, or compile it with --resident")


def reserved(size: int) -> tuple[mmap.mmap, np.ndarray]:
    """Address space in whole pages, and an array over it; memory comes when it is written to."""
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE
    mapping = mmap.mmap(-1, -(-size // PAGE) * PAGE, flags=private)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):  # a huge page would come with experts beside the one that is read
        with contextlib.suppress(OSError):  # a kernel built without huge pages
            mapping.madvise(mmap.MADV_NOHUGEPAGE)
    return mapping, np.frombuffer(mapping, np.uint8)


def _layer(spec: StreamedExpertsSpec, entries: Sequence[WeightEntry]) -> StreamedLayer:
    def places(expert: int) -> Iterator[Range]:
        for part in spec.weights:
            offset = entries[part.weight].offset
            start, end = part.starts[expert], part.starts[expert + 1]
            if end > start:
                yield offset + start, offset + end

    return StreamedLayer(spec.name, [tuple(places(expert)) for expert in range(spec.experts)])


def _others(layers: Sequence[StreamedLayer], size: int) -> Iterator[Range]:
    """Whole ranges of the file between those of experts."""
    start = 0
    for first, last in sorted(place for layer in layers for places in layer.places for place in places):
        if first > start:
            yield start, first
        start = max(start, last)
    if size > start:
        yield start, size
