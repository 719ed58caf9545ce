"""The experts that a plan keeps in the memory of each process: found by how much they are used, and checked against the
bytes that weights may take."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from moec.common.errors import MoecError
from moec.common.specs import StreamedExpertsSpec
from moec.placing.plan import ExpertPlan
from moec.runtime.manifest import Manifest, WeightEntry
from moec.runtime.streaming import StreamPlan


@dataclasses.dataclass(frozen=True)
class ProgramWeights:
    """The weights of a program, and the experts among them. ``stage``: its number, where each stage has a program.
    ``tables``: positions of weights that are read by rows."""

    streamed: Sequence[StreamedExpertsSpec]
    entries: Sequence[WeightEntry]
    stage: int | None = None
    tables: Sequence[int] = ()


def weights_of(manifest: Manifest) -> list[ProgramWeights]:
    """List the weights of the programs that an artifact runs: those of its stages where it has some."""
    programs = [(stage.program, number) for number, stage in enumerate(manifest.pipeline)]
    return [
        ProgramWeights(program.streamed, [manifest.weights[index] for index in program.weights], stage, program.tables)
        for program, stage in programs or [(program, None) for program in manifest.programs]
    ]


def check_resident(plan: ExpertPlan, programs: Sequence[ProgramWeights], where: str) -> None:
    """Raise MoecError, with the numbers, where no token can run in a process whose weights take the ``resident`` bytes
    of a plan, where experts that it keeps do not fit, and where there is nothing to stream."""
    assert plan.resident is not None, "the plan says how many bytes weights take"
    if not any(program.streamed or program.tables for program in programs):
        raise MoecError(f"{where}: has no experts or tables that could be streamed; leave resident out")
    for process, _, own in _processes(plan, programs, where):
        own.check(plan.resident, process)
        own.check_kept(plan.resident, process)


def with_residents(plan: ExpertPlan, programs: Sequence[ProgramWeights], where: str) -> ExpertPlan:
    """Keep in each process the experts that it uses most, as far as the plan's ``resident`` bytes have room. Raises
    MoecError as :func:`check_resident`."""
    empty = dataclasses.replace(plan, layers=tuple(dataclasses.replace(layer, resident=()) for layer in plan.layers))
    check_resident(empty, programs, where)
    assert plan.resident is not None
    kept: list[list[list[int]]] = [[[] for _ in range(plan.ranks or 1)] for _ in plan.layers]
    for _, rank, own in _processes(empty, programs, where):
        for number, expert in own.fitting(plan.resident):
            layer = own.streamed[number].planned
            if layer is not None:
                kept[layer][rank or 0].append(expert)
    layers = tuple(
        dataclasses.replace(layer, resident=tuple(tuple(sorted(experts)) for experts in ranks))
        for layer, ranks in zip(plan.layers, kept, strict=True)
    )
    return dataclasses.replace(plan, layers=layers)


def predicted_share(plan: ExpertPlan, programs: Sequence[ProgramWeights], where: str) -> float | None:
    """Predict the share of the experts that tokens choose which are in memory when runs begin, by the shares of tokens
    in the profile that the model was compiled with. None without one."""
    kept = every = 0.0
    for _, _, own in _processes(plan, programs, where):
        every += sum(own.own.values())
        kept += sum(own.own[place] for place in own.first)
    return kept / every if every else None


def _processes(
    plan: ExpertPlan, programs: Sequence[ProgramWeights], where: str
) -> Iterator[tuple[str, int | None, StreamPlan]]:
    """Iterate over all processes: their names in messages, their ranks, and what they read."""
    for program in programs:
        for rank in [None] if plan.ranks is None else range(plan.ranks):
            stage = [] if program.stage is None else [f"stage {program.stage}"]
            process = ", ".join([where, *stage, *([] if rank is None else [f"rank {rank}"])])
            yield process, rank, StreamPlan.of(program.streamed, program.entries, plan, rank, program.tables)
