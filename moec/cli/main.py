"""The command line: one function per verb. What they do lives in the library; what they print, in ``moec.inspect``.

Exit codes: 0 done, 1 a comparison found a difference, 2 bad input or usage (one line on stderr), 3 a defect of moec,
128 + N ended by signal N (130 by Ctrl-C, 143 by SIGTERM). Heavy imports stay inside the functions, so that
``moec --help`` answers at once.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moec import targets
from moec.cli import data, inspect, text, times
from moec.cli.compiling import compile_model
from moec.cli.data import pipeline_of
from moec.cli.ending import (
    CLOSED,
    CheckedOutput,
    OutputError,
    end_when_told,
    open_closed_streams,
    say_error,
    wait_if_ending,
)
from moec.cli.explore import explore
from moec.cli.export import export
from moec.cli.groups import with_groups
from moec.cli.options import (
    Architecture,
    Artifact,
    Emulate,
    FormatOptions,
    Inputs,
    Json,
    LoadingOptions,
    Model,
    OptimisationLevel,
    Profile,
    VerifyEach,
)
from moec.cli.place import place
from moec.cli.plan import plan
from moec.cli.printing import print_remarks, print_result, shown_progress
from moec.cli.serve import serve
from moec.cli.targets import target_commands
from moec.common.errors import DefectError, MoecError, reporting
from moec.common.version import VERSION

if TYPE_CHECKING:
    from moec.runtime.model import CompiledModel

DIFFERS, BAD_INPUT, DEFECT = 1, 2, 3

app = typer.Typer(
    name="moec",
    help="Compile Mixture-of-Experts models. Input: an ONNX file, a GGUF file or a Hugging Face folder. Output: a "
    "small, checked artifact with readable kernels.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """The entry point: whatever goes wrong is one line on stderr; MOEC_TRACEBACK=1 shows where it went wrong, too."""
    open_closed_streams()
    end_when_told()
    sys.exit(answer())


def answer() -> int:
    """Run the command of ``sys.argv`` and return its exit code."""
    code = None
    try:
        with reporting("moec"):
            sys.stdout = CheckedOutput(sys.stdout)  # type: ignore[assignment]
            try:
                app()  # ends with 2 for wrong usage
            except SystemExit as end:
                code = end.code
            print(end="", flush=True)
    except MoecError as error:
        wait_if_ending()
        if isinstance(error, OutputError) and error.is_closed:
            return CLOSED
        if os.environ.get("MOEC_TRACEBACK"):
            traceback.print_exc()
        say_error(str(error))
        return DEFECT if isinstance(error, DefectError) else BAD_INPUT
    return code if isinstance(code, int) else 0


@app.callback(invoke_without_command=True)
def _top(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        print(f"moec {VERSION}")
        raise typer.Exit


app.command("compile")(compile_model)
app.command()(export)


@app.command("import")
def import_model(
    model: Model,
    report: Annotated[
        bool,
        typer.Option(
            "--report", help="List every block with the properties that were established, and why it was not raised."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Find the MoE blocks of a model without compiling it.

    Counts the blocks that are raised to one operator, and those that only look like one and stay ordinary operators.
    """
    from moec.compiling import compiler
    from moec.inspect import tables

    with shown_progress() as progress:
        progress("looking for MoE blocks")
        raised, unraised = compiler.find_blocks(model)
    rows = [dataclasses.asdict(region) for region in unraised]
    if as_json:
        print_result({"raised": raised, "unraised": rows}, True, ())
        return
    if report:
        print_result(None, False, [tables.found_blocks_table(raised, rows)])
    print(f"{model}: {len(raised)} MoE blocks are raised, {len(rows)} more look like one and are not")


@app.command()
@with_groups
def run(
    artifact: Artifact,
    inputs: Annotated[Path, typer.Option(help="Read inputs by name from this .npz file.")],
    outputs: Annotated[Path, typer.Option(help="Write outputs by name to this .npz file.")],
    loading: LoadingOptions,
) -> None:
    """Run an artifact on the inputs in a file.

    An artifact holds machine code, which nothing confines.
    Run only those of people whose programs you would run.
    """
    from moec.common import array_files
    from moec.distributed.start import is_silent_rank, loaded

    array_files.check_arrays_destination(outputs)
    with loaded(artifact, **loading.keywords()) as compiled:
        results = compiled.run(array_files.read_arrays(inputs, compiled.inputs))
        if not is_silent_rank():
            array_files.write_arrays(outputs, results)


@app.command()
def verify(
    model: Model,
    artifact: Annotated[
        Path | None,
        typer.Argument(metavar="[ART]", help="The artifact, or an exported ONNX model. Default: compile MODEL first."),
    ] = None,
    inputs: Inputs = None,
    tolerance: Annotated[
        float | None, typer.Option(min=0, help="Allow this difference. Default: by the model's floats and arithmetic.")
    ] = None,
    emulate: Emulate = False,
    architecture: Architecture = None,
    as_json: Json = False,
) -> None:
    """Compare an artifact, or an exported ONNX model, with the original model in onnxruntime.

    Models that onnxruntime cannot run, such as GGUF files, run in the reference interpreter.
    The exit code is 1 if an output differs.
    """
    from rich.text import Text

    from moec.common import array_files
    from moec.inspect import tables
    from moec.tools.verify import verify as verify_model
    from moec.tools.verify_export import is_exported, verify_export

    with shown_progress() as progress:
        if artifact is not None and is_exported(artifact):
            progress("comparing with onnxruntime")
            arrays = None if inputs is None else array_files.read_arrays(inputs, ())
            verification = verify_export(model, artifact, arrays, tolerance)
        else:
            compiled = _compiled(model, artifact, emulate, architecture, progress)
            progress("comparing with onnxruntime")
            arrays = None if inputs is None else array_files.read_arrays(inputs, compiled.inputs)
            verification = verify_model(model, compiled, arrays, tolerance)
    data = verification.as_data()
    print_result(data, as_json, [tables.verification_table(data), *map(Text, verification.coverage.lines())])
    for guard in verification.refused:
        print(f"note: sizes outside of {guard} are refused", file=sys.stderr)
    for note in verification.notes:
        print(f"note: {note}", file=sys.stderr)
    if not verification.matches:
        raise typer.Exit(DIFFERS)
    if verification.failures:
        raise MoecError(f"{verification.failures[0]}; choose inputs it can run with --inputs")


app.command()(inspect.inspect)
app.command()(explore)


@app.command()
def opt(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="An ONNX file, or IR text (.onnxtxt).")],
    passes: Annotated[str | None, typer.Option(help="Run this pipeline.")] = None,
    level: OptimisationLevel = None,
    profile: Profile = None,
    print_ir_after: Annotated[
        list[str] | None,
        typer.Option(metavar="all|P", help="Also print the IR after this pass, or after all. Repeatable."),
    ] = None,
    verify_each: VerifyEach = False,
) -> None:
    """Run passes on a model and print the IR.

    Remarks go to stderr.
    """
    from moec.compiling import compiler

    text, remarks = compiler.optimize(
        model, pipeline_of(level, passes), profile=profile, print_after=print_ir_after or (), verify_each=verify_each
    )
    print(text)
    print_remarks(dataclasses.asdict(remark) for remark in remarks)


@app.command()
@with_groups
def pipeline(*, level: OptimisationLevel = None, formats: FormatOptions) -> None:
    """Print the pipeline of a level and formats.

    --passes takes such a text.
    """
    from moec.passes import pipeline as pipelines
    from moec.passes.framework.shorthand import with_arithmetic, with_formats

    text = with_formats(pipelines.LEVELS[pipeline_of(level, None)], formats.experts, formats.linears)
    print(with_arithmetic(text, formats.arithmetic))


app.command()(times.bench)
app.command()(times.tune)
app.command()(text.generate)
app.command()(serve)
app.command()(data.profile)
app.command()(plan)
app.command()(place)
app.command()(data.evaluate)
app.command()(data.sweep)
for _command in target_commands(DIFFERS):
    app.command()(_command)


@app.command()
def doctor(
    as_json: Json = False,
    clear_cache: Annotated[
        bool, typer.Option("--clear-cache", help="First remove the kernels and programs in the user's cache.")
    ] = False,
) -> None:
    """Show versions, the CPU with its instruction sets, compilers, and the contents of the user's cache.

    The exit code is 2 if there is a problem.
    """
    from moec.inspect import tables
    from moec.targets.build_cache import clear
    from moec.tools.doctor import examine

    if clear_cache:
        clear()
    findings = examine()
    print_result(findings, as_json, tables.doctor_tables(findings))
    if findings["problems"]:
        raise typer.Exit(BAD_INPUT)


def _compiled(
    model: Path, artifact: Path | None, emulate: bool, architecture: str | None, progress: Callable[[str], None]
) -> CompiledModel:
    """Load the artifact, or compile the model."""
    from moec.artifacts.loading import load
    from moec.compiling.compiler import compile

    if artifact is not None:
        return load(artifact, emulate=emulate, architecture=architecture)
    target = targets.default(on_device=emulate, architecture=architecture)
    return compile(model, target=target, emulate=emulate, progress=progress)
