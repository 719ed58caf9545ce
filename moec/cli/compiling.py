"""``moec compile``: a model becomes an artifact."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

from moec import targets
from moec.cli.data import asked_pipeline
from moec.cli.options import (
    Arithmetic,
    Experts,
    Linears,
    Nodes,
    OptimisationLevel,
    Plan,
    Profile,
    Ranks,
    Replicas,
    Resident,
    Source,
    Stages,
    Threads,
    VerifyEach,
    Workers,
)
from moec.cli.printing import report_compilation, shown_progress
from moec.cli.targets import Target, with_target_options
from moec.targets.kind import Options


class CompiledDrafts(str, enum.Enum):
    """Sources of drafts that are programs."""

    MTP = "mtp"


@with_target_options
def compile_model(
    model: Source,
    output: Annotated[
        Path,
        typer.Option("-o", "--output", help="Write the artifact to this folder, or to one file if it ends in .zip."),
    ],
    target: Target = targets.DEFAULT,
    level: OptimisationLevel = None,
    passes: Annotated[
        str | None, typer.Option(help="Run this pipeline instead of a level. moec pipeline -O2 shows one.")
    ] = None,
    experts: Experts = None,
    linears: Linears = None,
    arithmetic: Arithmetic = None,
    threads: Threads = None,
    cache: Annotated[
        bool | None,
        typer.Option(help="Keep keys and values of earlier tokens. Default: for GGUF files and folders, if possible."),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="Store this tokenizer.json for moec generate. Default: the one in the model's folder."),
    ] = None,
    resident: Resident = None,
    ranks: Ranks = None,
    nodes: Nodes = 1,
    replicas: Replicas = 0,
    plan: Plan = None,
    stages: Stages = None,
    profile: Profile = None,
    form: Annotated[
        str | None,
        typer.Option(help="c: also write a C library, named after the output, with moec.h. Needs a C compiler."),
    ] = None,
    batches: Annotated[
        bool, typer.Option("--batches", help="Also compile a program for sequences of different lengths together.")
    ] = False,
    drafts: Annotated[
        CompiledDrafts | None,
        typer.Option(help="mtp: also compile the model's MTP layer, for moec generate --drafts mtp. GGUF files."),
    ] = None,
    dump_phases_to: Annotated[Path | None, typer.Option(help="Write the IR after every pass to this folder.")] = None,
    verify_each: VerifyEach = False,
    workers: Workers = 0,
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="Also print the passes' notes and the time of each step.")
    ] = False,
    options: Options | None = None,
) -> None:
    """Compile a model into an artifact.

    Warnings go to stderr. moec inspect shows them again, with all notes.
    """
    from moec.compiling import compiler
    from moec.compiling.compile_options import CompileOptions

    with shown_progress(times=verbose) as progress:
        compile_options = CompileOptions(
            target=target,
            passes=asked_pipeline(level, passes),
            cache=cache,
            experts=experts,
            linears=linears,
            arithmetic=arithmetic,
            tokenizer=tokenizer,
            threads=threads,
            target_options=options,
            resident=resident,
            ranks=ranks,
            nodes=nodes,
            replicas=replicas,
            plan=plan,
            stages=stages,
            profile=profile,
            verify_each=verify_each,
            dump_to=dump_phases_to,
            form=form,
            batches=batches,
            drafts=None if drafts is None else drafts.value,
            workers=workers,
            progress=progress,
        )
        compiler.write(model, output, compile_options)
    report_compilation(output, verbose)
