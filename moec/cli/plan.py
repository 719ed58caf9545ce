"""``moec plan``: a format, ranks and a place in memory for every expert."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moec import targets
from moec.cli.data import asked_pipeline
from moec.cli.groups import with_groups
from moec.cli.options import Nodes, OptimisationLevel, Ranks, Replicas, Resident
from moec.cli.printing import print_result, shown_progress
from moec.cli.targets import Target
from moec.common.byte_counts import bytes_of
from moec.common.errors import MoecError

if TYPE_CHECKING:
    from moec.tools.planning import FormatsTask
    from moec.tools.planning_ranks import RanksTask


@dataclasses.dataclass(frozen=True)
class RankOptions:
    """Ranks that experts are placed on."""

    ranks: Ranks = None
    nodes: Nodes = 1
    replicas: Replicas = 0
    method: Annotated[
        str | None, typer.Option(help="Place experts on --ranks by this method: joint (default), eplb, linear.")
    ] = None
    slack: Annotated[
        float,
        typer.Option(min=0, help="Let joint add this imbalance to bring experts together that tokens select together."),
    ] = 0.0

    def task(self) -> RanksTask | None:
        """Task of placing experts; None without ``--ranks``. Raises MoecError for other options without it."""
        from moec.placing.place import DEFAULT_METHOD
        from moec.tools.planning_ranks import RanksTask

        if self.ranks is not None:
            return RanksTask(self.ranks, self.nodes, self.replicas, self.method or DEFAULT_METHOD, self.slack)
        if self != RankOptions():
            raise MoecError("--nodes, --replicas, --method and --slack are about --ranks; add it")
        return None


@dataclasses.dataclass(frozen=True)
class BitsOptions:
    """Formats, and the budget that they are chosen within."""

    avg: Annotated[
        float | None,
        typer.Option(min=1, max=32, help="Choose formats with this average of bits per weight, without scales."),
    ] = None
    megabytes: Annotated[
        float | None, typer.Option(min=0, help="Choose formats with this size of the weights instead, scales included.")
    ] = None
    microseconds: Annotated[
        float | None,
        typer.Option(min=0, help="Choose formats by the predicted time of reading the weights per decoded token."),
    ] = None
    gigabytes_per_second: Annotated[
        float | None,
        typer.Option(min=0, help="Predict times with this memory bandwidth. Default: measured on this processor."),
    ] = None
    formats: Annotated[str | None, typer.Option(help="Choose from these formats, such as int8+int4/32+int2/32.")] = None
    linears: Annotated[bool, typer.Option(help="Also choose formats of dense products.")] = False
    sensitivities: Annotated[
        Path | None,
        typer.Option(help="Weight the errors of each layer by this file, written by moec.tools.sensitivities."),
    ] = None

    def task(self) -> FormatsTask | None:
        """Task of choosing formats; None without a budget. Raises MoecError for several, and for other options without
        one."""
        from moec.tools.planning import FormatsTask, budget_of

        limits = sum(limit is not None for limit in (self.avg, self.megabytes, self.microseconds))
        if limits > 1:
            raise MoecError("expected one of --avg, --megabytes and --microseconds")
        if not limits and self != BitsOptions():
            raise MoecError("formats are chosen within a budget; add --avg, --megabytes or --microseconds")
        if not limits:
            return None
        if self.microseconds is None and self.gigabytes_per_second is not None:
            raise MoecError("--gigabytes-per-second needs --microseconds; leave it out")
        budget = budget_of(self.avg, self.megabytes, self.microseconds, self.gigabytes_per_second)
        return FormatsTask(budget, self.formats, self.linears, self.sensitivities)


@with_groups
def plan(
    source: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A model; for --ranks and --resident an artifact; or a profile.")
    ],
    *,
    profile: Annotated[
        Path | None, typer.Option(help="Read this .moeprof file, made by moec profile from MODEL.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write the plan to this JSON file. Default: standard output.")
    ] = None,
    spreading: RankOptions,
    resident: Resident = None,
    rounding: BitsOptions,
    target: Target = targets.DEFAULT,
    level: OptimisationLevel = None,
    passes: Annotated[str | None, typer.Option(help="Run the pipeline after which MODEL was profiled.")] = None,
) -> None:
    """Plan a format, ranks and a place in memory for every expert.

    Edit the plan if you like, and apply it with --plan of compile, or of place without compiling.
    """
    from moec.common.replacing import check_replaceable
    from moec.inspect.plans import plan_table
    from moec.tools.planning import PlanTask, edited, write_plan
    from moec.tools.planning import plan as make_plan

    if output is not None:
        check_replaceable(output, edited)
    task = PlanTask(
        rounding.task(),
        spreading.task(),
        None if resident is None else bytes_of("resident", resident),
        target,
        asked_pipeline(level, passes),
    )
    with shown_progress() as progress:
        planned = make_plan(source, task, profile, progress)
    if output is None:
        print(planned.text(), end="")
    else:
        write_plan(output, planned)
        print_result(None, False, [plan_table(planned)])
    for remark in planned.notes.get("remarks", []):
        print(f"note: {remark}", file=sys.stderr)
