"""Commands that measure times: ``moec bench`` and ``moec tune``."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from moec.cli.groups import with_groups
from moec.cli.options import Artifact, Inputs, Json, PageKind, PagesOption, RunningOptions, Threads
from moec.cli.printing import print_result, shown_progress
from moec.common.errors import MoecError


@dataclasses.dataclass(frozen=True)
class SessionOptions:
    """Options of timing sessions instead of single runs."""

    prefill: Annotated[int | None, typer.Option(help="Time sessions instead, with a prompt of this many tokens.")] = (
        None
    )
    decode: Annotated[
        int | None, typer.Option(help="Time sessions instead, with this many tokens generated one by one.")
    ] = None
    depth: Annotated[
        str | None, typer.Option(help="Time sessions after this many tokens, or several numbers: 0,1024.")
    ] = None
    repetitions: Annotated[int, typer.Option(help="Repeat each session this many times.")] = 5

    @property
    def are_asked(self) -> bool:
        return (self.prefill, self.decode, self.depth) != (None, None, None)


@with_groups
def bench(
    artifact: Artifact,
    *,
    against: Annotated[str | None, typer.Option(help="Also time this runtime: onnxruntime.")] = None,
    model: Annotated[Path | None, typer.Option(help="Run this original model for --against.")] = None,
    inputs: Inputs = None,
    sessions: SessionOptions,
    running: RunningOptions,
    trace: Annotated[
        Path | None,
        typer.Option(metavar="JSON", help="Also record a prompt and a decode step for Perfetto and moec explore."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Time an artifact and each of its kernels, or sessions of a language model.

    Runs of --against are interleaved with those of the artifact.
    Sessions are in tokens per second.
    """
    from moec.artifacts.loading import load
    from moec.common import array_files
    from moec.distributed.start import is_started_on_ranks
    from moec.inspect import tables
    from moec.tools.bench import bench as bench_model

    if is_started_on_ranks() and trace is not None:
        raise MoecError("--trace records one process; leave it out on several ranks")
    if sessions.are_asked:
        if against or inputs:
            raise MoecError(
                "--prefill, --decode and --depth time sessions, --against and --inputs single runs; give one kind"
            )
        _bench_sessions(artifact, sessions, running, trace, as_json)
        return
    if is_started_on_ranks():
        raise MoecError("on several ranks bench times sessions: give --prefill or --decode")
    with _recording(trace) as record, shown_progress() as progress:
        compiled = load(artifact, **running.keywords())
        arrays = None if inputs is None else array_files.read_arrays(inputs, compiled.inputs)
        progress("timing")
        result = bench_model(compiled, against=against, model_path=model, inputs=arrays)
        record(compiled, inputs=arrays, progress=progress)
    print_result(result, as_json, tables.bench_tables(result))


def _bench_sessions(
    artifact: Path, sessions: SessionOptions, running: RunningOptions, trace: Path | None, as_json: bool
) -> None:
    from moec.common.arguments import token_counts
    from moec.distributed.bench import bench_session
    from moec.distributed.start import loaded
    from moec.inspect import tables
    from moec.tools.bench_session import DECODE, PREFILL

    depths = token_counts("depth", sessions.depth or "0")
    prefill, decode = sessions.prefill, sessions.decode
    if prefill is None and decode is None:
        prefill, decode = PREFILL, DECODE
    timing: dict[str, Any] = {"prefill": prefill, "decode": decode, "repetitions": sessions.repetitions}
    with (
        _recording(trace) as record,
        shown_progress() as progress,
        loaded(artifact, **running.keywords()) as compiled,
    ):
        timed = bench_session(compiled, depths=depths, progress=progress, **timing)
        record(compiled, prompt=prefill, depth=max(depths), progress=progress)
        print_result(timed, as_json, [tables.sessions_table(timed)])


@contextlib.contextmanager
def _recording(path: Path | None) -> Iterator[Callable[..., None]]:
    """Context with a function that records a trace in ``path``, if there is one. Raises MoecError at once where that
    cannot be written. The end says on stderr what to do with it."""
    from moec.common.replacing import check_replaceable
    from moec.tools.tracing.file import foreign_trace, write_trace
    from moec.tools.tracing.recording import record_trace

    if path is None:
        yield lambda *_, **__: None
        return
    check_replaceable(path, foreign_trace)
    yield lambda compiled, **options: write_trace(record_trace(compiled, **options), path)
    print(f"{path} is written: open it in ui.perfetto.dev, or give it to moec explore --trace", file=sys.stderr)


def tune(
    artifact: Artifact, threads: Threads = None, pages: PagesOption = PageKind.AUTO, as_json: Json = False
) -> None:
    """Measure from how many rows on kernels should take their second way on this machine.

    Every load uses the result.
    """
    from moec.artifacts.loading import load
    from moec.inspect import tables
    from moec.tools.tune import measure

    with shown_progress() as progress:
        tuned = measure(load(artifact, threads=threads, pages=pages.value), progress)
    data = [dataclasses.asdict(crossover) for crossover in tuned]
    print_result(data, as_json, tables.tuning_tables(data))
