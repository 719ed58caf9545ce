"""``moec plan``: a format, ranks and a place in memory for every expert."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from moec import targets
from moec.cli.data import asked_pipeline
from moec.cli.options import Nodes, OptimisationLevel, Ranks, Replicas, Resident
from moec.cli.printing import print_result, shown_progress
from moec.cli.targets import Target
from moec.common.byte_counts import bytes_of
from moec.common.errors import MoecError


def plan(
    source: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A model; for --ranks and --resident an artifact; or a profile.")
    ],
    profile: Annotated[
        Path | None, typer.Option(help="Read this .moeprof file, made by moec profile from MODEL.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write the plan to this JSON file. Default: standard output.")
    ] = None,
    ranks: Ranks = None,
    nodes: Nodes = 1,
    replicas: Replicas = 0,
    method: Annotated[
        str | None, typer.Option(help="Place experts on --ranks by this method: joint (default), eplb, linear.")
    ] = None,
    slack: Annotated[
        float,
        typer.Option(min=0, help="Let joint add this imbalance to bring experts together that tokens select together."),
    ] = 0.0,
    resident: Resident = None,
    avg: Annotated[
        float | None,
        typer.Option(min=1, max=32, help="Choose formats with this average of bits per weight, without scales."),
    ] = None,
    megabytes: Annotated[
        float | None, typer.Option(min=0, help="Choose formats with this size of the weights instead, scales included.")
    ] = None,
    microseconds: Annotated[
        float | None,
        typer.Option(min=0, help="Choose formats by the predicted time of reading the weights per decoded token."),
    ] = None,
    gigabytes_per_second: Annotated[
        float | None,
        typer.Option(min=0, help="Predict times with this memory bandwidth. Default: measured on this processor."),
    ] = None,
    formats: Annotated[
        str | None, typer.Option(help="Choose from these formats, such as int8+int4/32+int2/32.")
    ] = None,
    linears: Annotated[bool, typer.Option(help="Also choose formats of dense products.")] = False,
    sensitivities: Annotated[
        Path | None,
        typer.Option(help="Weight the errors of each layer by this file, written by moec.tools.sensitivities."),
    ] = None,
    target: Target = targets.DEFAULT,
    level: OptimisationLevel = None,
    passes: Annotated[str | None, typer.Option(help="Run the pipeline after which MODEL was profiled.")] = None,
) -> None:
    """Plan a format, ranks and a place in memory for every expert.

    Edit the plan if you like, and apply it with --plan of compile, or of place without compiling.
    """
    from moec.common.replacing import check_replaceable
    from moec.inspect.plans import plan_table
    from moec.placing.place import DEFAULT_METHOD
    from moec.tools.planning import FormatsTask, PlanTask, budget_of, edited, write_plan
    from moec.tools.planning import plan as make_plan
    from moec.tools.planning_ranks import RanksTask

    if output is not None:
        check_replaceable(output, edited)
    limits = sum(limit is not None for limit in (avg, megabytes, microseconds))
    if limits > 1:
        raise MoecError("expected one of --avg, --megabytes and --microseconds")
    if not limits and (formats or linears or sensitivities or gigabytes_per_second is not None):
        raise MoecError("formats are chosen within a budget; add --avg, --megabytes or --microseconds")
    if microseconds is None and gigabytes_per_second is not None:
        raise MoecError("--gigabytes-per-second needs --microseconds; leave it out")
    if ranks is None and (nodes != 1 or replicas or slack or method is not None):
        raise MoecError("--nodes, --replicas, --method and --slack are about --ranks; add it")
    chosen = None
    if limits:
        budget = budget_of(avg, megabytes, microseconds, gigabytes_per_second)
        chosen = FormatsTask(budget, formats, linears, sensitivities)
    task = PlanTask(
        chosen,
        None if ranks is None else RanksTask(ranks, nodes, replicas, method or DEFAULT_METHOD, slack),
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
