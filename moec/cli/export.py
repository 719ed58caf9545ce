"""The command ``moec export``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from moec.cli.data import asked_pipeline
from moec.cli.options import Cache, Experts, Json, Level, Linears, Model, Passes
from moec.cli.printing import print_remarks, print_result, shown_progress
from moec.exporting.forms import FORMS


def export(
    model: Model,
    output: Annotated[Path, typer.Option("-o", "--output", help="Write to this file or folder.")],
    form: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="FORM",
            help=f"Write for {', '.join(form.name for form in FORMS)}. Default: by the suffix of the output.",
        ),
    ] = None,
    level: Annotated[
        Level | None, typer.Option("-O", help="Run the passes of this level first. -O2, the default, is exact.")
    ] = None,
    passes: Passes = None,
    experts: Experts = None,
    linears: Linears = None,
    cache: Cache = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Write this tokenizer.json, too. Default: the one in the model's folder.")
    ] = None,
    profile: Annotated[
        Path | None, typer.Option(help="Give this profile, made by moec profile, to all passes that take one.")
    ] = None,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Also print the passes' notes.")] = False,
    as_json: Json = False,
) -> None:
    """Write a model as files that another program runs.

    Prints how each MoE block was written, and why a block stayed a graph.
    """
    from moec.exporting.driver import export_with
    from moec.exporting.export_options import ExportOptions
    from moec.inspect import exports

    with shown_progress() as progress:
        options = ExportOptions(
            passes=asked_pipeline(level, passes),
            experts=experts,
            linears=linears,
            cache=cache,
            tokenizer=tokenizer,
            profile=profile,
            progress=progress,
        )
        result = export_with(model, output, form, options)
    print_remarks(dataclasses.asdict(remark) for remark in result.remarks if verbose or remark.severity == "warning")
    print_result(exports.as_data(result), as_json, exports.tables(result))
