"""Weights larger than memory: their layout, and the part of them that is loaded at the start.

Weights of experts that the program requests are streamed (:mod:`moec.runtime.streamed_experts`), and tables of which it
looks up rows stay in the file (:mod:`moec.runtime.row_tables`); all others are read when the model is loaded and stay.
They are in the process' private memory, so that the system cannot reclaim them when it needs room for files.
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
from collections.abc import Iterator, Mapping, Sequence, Set

import numpy as np

from moec.common.errors import ArtifactError, MoecError
from moec.common.specs import StreamedExpertsSpec
from moec.placing.judge import holding, shares
from moec.placing.plan import ExpertPlan
from moec.runtime.direct_reads import PAGE, DirectReads, PendingRead, Range, read_now
from moec.runtime.manifest import ProgramEntry, WeightEntry
from moec.runtime.pages import Pages, Placement
from moec.runtime.reserved_memory import ReservedMemory
from moec.runtime.row_tables import RowTables
from moec.runtime.streamed_experts import StreamedExperts, StreamedLayer
from moec.runtime.streamed_weights import StreamedWeights

_MIB = 1 << 20


@dataclasses.dataclass(frozen=True)
class StreamPlan:
    """Partition of the weights that a process reads into resident and streamed ones. ``layers``: places of the
    experts, by the number of the layer; ``own``: the experts (layer, expert) that the process computes, with how much
    they are used; ``kept``: those that are read before runs begin, None for as many as there is room for; ``others``:
    ranges of the file with all other weights, which stay; ``tables``: those that are read by rows where not all weights
    fit."""

    streamed: Sequence[StreamedExpertsSpec]
    layers: Sequence[StreamedLayer]
    own: Mapping[tuple[int, int], float]
    kept: Set[tuple[int, int]] | None
    others: Sequence[Range]
    tables: Sequence[WeightEntry] = ()

    @staticmethod
    def of(
        streamed: Sequence[StreamedExpertsSpec],
        entries: Sequence[WeightEntry],
        plan: ExpertPlan | None = None,
        rank: int | None = None,
        tables: Sequence[int] = (),
    ) -> StreamPlan:
        """Divide the weights of a program. ``entries``: its weights; their file may have others, of another stage.
        ``plan``: the artifact's, with the experts of each rank; a process that is none of the ranks has all.
        ``tables``: positions of the weights that are read by rows."""
        layers = [_layer(spec, entries) for spec in streamed]
        by_rows, rows = [entries[at] for at in tables], set(tables)
        others = list(_others(layers, list(_joined([entry for at, entry in enumerate(entries) if at not in rows]))))
        return StreamPlan(streamed, layers, _own(streamed, plan, rank), _kept(streamed, plan, rank), others, by_rows)

    @property
    def pinned(self) -> int:
        """Bytes that stay in memory."""
        return sum(end - start for start, end in self.others) + sum(layer.edges for layer in self.layers)

    @property
    def size(self) -> int:
        """Bytes of the file that the process reads if all of its experts and tables stay."""
        return sum(end - start for start, end in self.ranges()) + self.table_bytes

    @property
    def table_bytes(self) -> int:
        """Bytes of the tables that are read by rows where not all weights fit."""
        return sum(entry.bytes for entry in self.tables)

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
        """Order in which own experts (layer, expert) are read first: those that are used most, or by their number
        where that was not measured."""
        return sorted(self.own, key=lambda place: (-self.own[place], place[1], place[0]))

    @property
    def first(self) -> list[tuple[int, int]]:
        """The experts that are read before runs begin, in their order, as far as there is room for them."""
        return [place for place in self.order if self.kept is None or place in self.kept]

    def room_in(self, resident: int) -> int:
        """Bytes of experts for which so many bytes of weights have room: all where all weights fit."""
        return self.experts if resident >= self.size else min(self.experts, resident - self.pinned)

    def fitting(self, resident: int) -> list[tuple[int, int]]:
        """List the first experts for which so many bytes of weights have room, as
        :meth:`~moec.runtime.streamed_experts.StreamedExperts.fill` reads them."""
        first, room = self.first, self.room_in(resident)
        sizes = itertools.accumulate(self.layers[layer].bytes_of(expert) for layer, expert in first)
        return [place for place, size in zip(first, sizes, strict=True) if size <= room]

    def ranges(self) -> list[Range]:
        """List the ranges of the file with own experts, and with all weights that stay beside them."""
        places = (place for layer, expert in sorted(self.own) for place in self.layers[layer].places[expert])
        return [*self.others, *places]

    def check(self, resident: int, where: str) -> None:
        """Raise MoecError, with the numbers, where one token cannot run in so many bytes."""
        least = min(self.least, self.size)
        if resident < least:
            raise MoecError(
                f"{where}: {resident / _MIB:.1f} MiB are too few for its weights: one token needs the weights "
                f"that stay and its experts of a layer, {least / _MIB:.1f} of {self.size / _MIB:.1f} MiB; "
                f"give it at least {least} bytes (resident)"
            )

    def check_kept(self, resident: int, where: str) -> None:
        """Raise MoecError, with the numbers, where the experts that a plan keeps in memory do not fit into it."""
        kept = sum(self.layers[layer].bytes_of(expert) for layer, expert in self.kept or ())
        room = self.room_in(resident)
        if kept > room:
            raise MoecError(
                f"{where}: the plan keeps experts of {kept / _MIB:.3f} MiB in memory, and there is room for "
                f"{room / _MIB:.3f} MiB beside other weights; list fewer resident experts, or raise resident"
            )


def _own(
    streamed: Sequence[StreamedExpertsSpec], plan: ExpertPlan | None, rank: int | None
) -> dict[tuple[int, int], float]:
    """The experts (layer, expert) that a process computes, with the shares of tokens that bring each to it; 0 where
    that was not measured."""
    own: dict[tuple[int, int], float] = {}
    placement = None if plan is None or rank is None else plan.placement
    for number, spec in enumerate(streamed):
        used = dict(enumerate(spec.shares or [0.0] * spec.experts))
        if placement is not None and rank is not None and spec.planned is not None:
            layer = placement.layers[spec.planned]
            parts = shares(holding(layer), placement.nodes)[:, rank]
            used = {expert: used[expert] * float(parts[expert]) for expert in layer.slots[rank]}
        own |= {(number, expert): share for expert, share in used.items()}
    return own


def _kept(
    streamed: Sequence[StreamedExpertsSpec], plan: ExpertPlan | None, rank: int | None
) -> set[tuple[int, int]] | None:
    """The experts (layer, expert) that a plan keeps in the memory of a rank, or of any where the process is none; None
    for a plan that does not say so."""
    kept: set[tuple[int, int]] = set()
    if plan is None or not any(layer.resident for layer in plan.layers):
        return None
    for number, spec in enumerate(streamed):
        of_ranks = () if spec.planned is None else plan.layers[spec.planned].resident
        listed = of_ranks if rank is None else of_ranks[rank : rank + 1]
        kept |= {(number, expert) for expert in itertools.chain(*listed)}
    return kept


def place_streamed(
    path: pathlib.Path,
    program: ProgramEntry,
    entries: Sequence[WeightEntry],
    resident: int | None,
    where: str,
    preferred: float = 0.0,
    planned: ExpertPlan | None = None,
    rank: int | None = None,
    counts: Sequence[np.ndarray] | None = None,
) -> tuple[np.ndarray, StreamedWeights, Placement]:
    """Load a file of weights, with at most ``resident`` bytes in memory at a time, and no experts except those that the
    plan gives to ``rank``; None: all. Where not all weights fit, tables that are read by rows stay in the
    file. ``preferred``: see :class:`StreamedExperts`. ``counts``: of each layer, how often each expert was chosen
    before; those chosen most are read first.

    Raises MoecError where one token needs more; ArtifactError where the file cannot be read; OSError.
    """
    plan = StreamPlan.of(program.streamed, entries, planned, rank, program.tables)
    own = None if rank is None else set(plan.own)
    room, by_rows = plan.experts, False
    if resident is not None:
        plan.check(resident, where)
        room, by_rows = plan.room_in(resident), bool(plan.tables) and resident < plan.size
    size = path.stat().st_size
    memory = ReservedMemory(size)
    in_memory = [] if by_rows else [(entry.offset, entry.offset + entry.bytes) for entry in plan.tables]
    memory.open([(0, size)] if own is None and not by_rows else [*plan.ranges(), *in_memory])
    tables = RowTables(path, plan.tables, memory.array.ctypes.data) if by_rows else None
    reads = DirectReads(path, memory.array)
    read_now(reads, PendingRead("what is no expert's", [*plan.others, *in_memory]), str(path))
    experts = StreamedExperts(reads, memory.mapping, plan.layers, room, str(path), preferred, own)
    first = plan.first if counts is None else sorted(plan.first, key=lambda place: -counts[place[0]][place[1]])
    experts.fill(first)
    kept, reasons = f"{experts.room / _MIB:.1f} of {plan.experts / _MIB:.1f} MiB", []
    if own is not None and experts.has_room_for_all:
        reasons.append(f"this rank holds {kept} of experts, which are its own")
    elif plan.experts:
        reasons.append(f"there is room for {kept} of experts; others are read when they are chosen, or expected")
    if by_rows:
        reasons.append(f"rows of tables of {plan.table_bytes / _MIB:.1f} MiB are read when they are looked up")
    return memory.array[:size], StreamedWeights(experts, tables), Placement("streamed", "; ".join(reasons))


def check_replaceable(program: ProgramEntry, pages: Pages, where: str) -> None:
    """Raise MoecError for a program in which no expert can take the place of one that is not in memory."""
    if pages in ("mapped", "huge"):
        raise MoecError(
            f"{where}: prefer_resident is about experts that are read when chosen; leave it out, or pages='{pages}'"
        )
    if not any(layer.replaceable for layer in program.streamed):
        reason = "no router of it can prefer experts" if program.streamed else "was compiled to have all in memory"
        raise MoecError(f"{where}: {reason}; load it without prefer_resident, or compile it with --resident")


def check_alike(program: ProgramEntry, other: ProgramEntry, where: str) -> None:
    """Raise ArtifactError unless another program can use the weights of ``program`` that are not all in memory: it asks
    for the same experts by the same numbers of layers, and reads tables by rows, too."""
    by_rows = {program.weights[at] for at in program.tables} & set(other.weights)
    is_alike = by_rows <= {other.weights[at] for at in other.tables}
    if _streamed_parts(program) != _streamed_parts(other) or not is_alike:
        raise ArtifactError(
            f"{where}: its program of batches reads weights in another way than the model does; load it with memory "
            "for all weights (resident)"
        )


def _streamed_parts(program: ProgramEntry) -> list[set[tuple[int, tuple[int, ...]]]]:
    """Weights of each streamed layer, by their positions in the manifest, with the places of experts."""
    return [
        {(program.weights[part.weight], tuple(part.starts)) for part in layer.weights} for layer in program.streamed
    ]


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
