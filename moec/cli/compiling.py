"""``moec compile``: a model becomes an artifact."""

from __future__ import annotations

import dataclasses
import enum
from pathlib import Path
from typing import Annotated, Any

import typer

from moec import targets
from moec.cli.data import asked_pipeline
from moec.cli.groups import with_groups
from moec.cli.options import (
    Cache,
    FormatOptions,
    Model,
    OptimisationLevel,
    Passes,
    PlacingOptions,
    Threads,
    VerifyEach,
    Workers,
)
from moec.cli.printing import report_compilation, shown_progress
from moec.cli.targets import Target, with_target_options
from moec.common import draft_kinds
from moec.targets.kind import Options


class CompiledDrafts(str, enum.Enum):
    """Sources of drafts that are programs."""

    MTP = draft_kinds.MTP


@dataclasses.dataclass(frozen=True)
class AdditionOptions:
    """Further programs and forms of an artifact."""

    form: Annotated[
        str | None,
        typer.Option(help="c: also write a C library, named after the output, with moec.h. Needs a C compiler."),
    ] = None
    batches: Annotated[
        bool, typer.Option("--batches", help="Also compile a program for sequences of different lengths together.")
    ] = False
    drafts: Annotated[
        CompiledDrafts | None,
        typer.Option(
            help="mtp: also compile the model's MTP layer, for moec generate --drafts mtp. GGUF files and folders."
        ),
    ] = None

    def keywords(self) -> dict[str, Any]:
        """Arguments of :func:`moec.compile`."""
        return {**vars(self), "drafts": self.drafts and self.drafts.value}


@with_target_options
@with_groups
def compile_model(
    model: Model,
    output: Annotated[
        Path,
        typer.Option("-o", "--output", help="Write the artifact to this folder, or to one file if it ends in .zip."),
    ],
    *,
    target: Target = targets.DEFAULT,
    level: OptimisationLevel = None,
    passes: Passes = None,
    formats: FormatOptions,
    threads: Threads = None,
    cache: Cache = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="Store this tokenizer.json for moec generate. Default: the one in the model's folder."),
    ] = None,
    placing: PlacingOptions,
    additions: AdditionOptions,
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
            **vars(formats),
            tokenizer=tokenizer,
            threads=threads,
            target_options=options,
            **vars(placing),
            verify_each=verify_each,
            dump_to=dump_phases_to,
            **additions.keywords(),
            workers=workers,
            progress=progress,
        )
        compiler.write(model, output, compile_options)
    report_compilation(output, verbose)
