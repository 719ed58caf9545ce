"""Runs of a project's testbench: as C simulation, or with clocks, bounded channels and memories that take time.

The timed simulation counts the cycles of pipelined loops, of waiting for channels and memories, and the latency of
bursts. It does not count code between loops. It counts stages of pipelines only as far as they are given, since
synthesis decides on them. Every run gives the same results.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from moec.common.errors import MoecError
from moec.common.scratch import ScratchFolder
from moec.simulators.hls.build import compile_simulation, find_compiler, is_gcc
from moec.simulators.hls.cpp import Source
from moec.simulators.hls.instrument import Style, has_region, instrument
from moec.targets.hls.hardware.configuration import Configuration, read_configuration

Kind = Literal[
    "mismatch",
    "deadlock",
    "false dependence",
    "outside of memory",
    "misused channel",
    "wrong setting",
    "undefined behaviour",
    "crash",
]
FifoDepths = int | Mapping[str, int] | None

_KINDS: dict[int, Kind] = {
    1: "mismatch",
    42: "deadlock",
    43: "false dependence",
    44: "outside of memory",
    45: "misused channel",
    46: "wrong setting",
    47: "undefined behaviour",
}
"""Kinds of failures by exit code; codes from 42 on are defined in timed/runtime/faults.h."""
_COUNTS = {"end", "busy", "read_stall", "write_stall", "memory_stall", "words"}
"""Figures that are summed over the runs of a region."""
_SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize=shift", "-fno-sanitize-recover=all", "-g1")
"""Options of the sanitizers. Shifts are not checked: ap_int.h shifts negative numbers to the left, which is undefined
before C++20."""
_SANITIZER_SETTINGS = {
    "ASAN_OPTIONS": "exitcode=47:detect_leaks=0:use_sigaltstack=0",
    "UBSAN_OPTIONS": "exitcode=47:print_stacktrace=0",
}
_POISON = "-ftrivial-auto-var-init=pattern"
_WATCH = ("-fsanitize=thread", "-fno-threadsafe-statics")
"""Options with which compiled code calls ThreadSanitizer's functions on every access; the simulation defines its own
functions of these names."""
_LARGE_STACK = 'ulimit -s 4194304 2>/dev/null || ulimit -s "$(ulimit -H -s)"; exec "$@"'
"""A shell command that raises the stack's limit (KiB), since C simulation keeps a design's memories on the stack."""


class SimulationError(MoecError):
    """A simulation that failed. ``details``: all that it printed."""

    def __init__(self, kind: Kind, message: str, details: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.details = details


@dataclasses.dataclass(frozen=True)
class ProcessTimes:
    """Cycles of one process: its end, its work, and its waiting by cause."""

    name: str
    end: int
    busy: int
    read_stall: int
    write_stall: int
    memory_stall: int


@dataclasses.dataclass(frozen=True)
class ChannelUse:
    """The use of a channel. ``peak``: the most words that it held; ``words``: the number that passed through it."""

    name: str
    depth: int
    peak: int
    words: int
    writer: str
    reader: str


@dataclasses.dataclass(frozen=True)
class RegionTimes:
    """One run of a DATAFLOW region, or of another function that the top function calls."""

    name: str
    cycles: int


@dataclasses.dataclass(frozen=True)
class TimedResult:
    """The cycles of a testbench's first call.

    - ``regions``: their runs, in order.
    - ``processes``, ``channels``: of all regions, with the counts of several runs added up, and named ``region.name``
      if there are several.
    - ``later_cycles``: of further calls.
    - ``output``: the text that the testbench printed.
    """

    cycles: int
    regions: tuple[RegionTimes, ...]
    processes: tuple[ProcessTimes, ...]
    channels: tuple[ChannelUse, ...]
    later_cycles: tuple[int, ...]
    output: str


def simulate_functionally(
    files: Mapping[str, bytes],
    *,
    compiler: str = "g++",
    optimization: Literal["-O0", "-O1", "-O2"] = "-O1",
    sanitize: bool = False,
    poison: bool = False,
    timeout: float = 600,
) -> str:
    """Run the testbench of a project, given as contents by path, in plain C simulation; returns its output.

    ``sanitize``: accesses outside of arrays and undefined behaviour are errors. ``poison``: variables hold garbage
    until something is assigned to them (g++ from 12 on, or clang). ``timeout``: in seconds.

    Raises SimulationError where the testbench fails, MoecError where it cannot be built.
    """
    options = [optimization, *(_SANITIZERS if sanitize else ()), *([_POISON] if poison else ())]
    linked = [_SANITIZERS[0]] if sanitize else []
    configuration = read_configuration(files)
    program = compile_simulation(
        _texts(files), configuration, "functional", compiler=compiler, options=options, linked=linked
    )
    return _run(program, files, configuration, _SANITIZER_SETTINGS, timeout)


def simulate_timed(
    files: Mapping[str, bytes],
    *,
    memory_share: float = 1.0,
    total_share: float | None = None,
    memory_latency: int = 64,
    pipeline_depth: int = 0,
    pipeline_style: Style | None = None,
    stages: Mapping[str, int] | None = None,
    memories: Mapping[str, str] | None = None,
    fifo_depths: FifoDepths = None,
    watch_dependences: bool = False,
    compiler: str = "g++",
    timeout: float = 600,
) -> TimedResult:
    """Run the testbench of a project, given as contents by path, with clocks; returns its cycles, stalls and the fill
    of its channels.

    - ``memory_share``: beats per cycle that each port of the memory delivers, up to 1.
    - ``total_share``: beats per cycle of all ports together; by default the sum of the ports.
    - ``memory_latency``: cycles until the first beat of a loop.
    - ``pipeline_depth``: stages of every pipeline after its first, which reads. The first channel that a loop's code
      writes is written in the second stage, the last one in the last stage, unless ``stages`` has a channel's stage by
      its name.
    - ``pipeline_style``: of all pipelines, in place of the declared ones.
    - ``memories``: the port of each AXI bundle; by default those of the project's ``link.cfg``.
    - ``fifo_depths``: of all channels, or of some by name, in place of the declared ones.
    - ``watch_dependences``: check DEPENDENCE pragmas against the accesses of loops, which is slow and needs g++.

    Raises SimulationError for a deadlock, a wrong result or a wrong pragma, MoecError for code that the simulation does
    not understand.
    """
    if not 0 < memory_share <= 1:
        raise MoecError(f"memory_share={memory_share}: expected a share above 0, up to 1")
    if watch_dependences and not is_gcc(find_compiler(compiler)):
        raise MoecError(f"watching dependences with {compiler}, which leaves some loads out: use g++")
    configuration = read_configuration(files)
    program = _timed_program(files, configuration, compiler, watch_dependences)
    with ScratchFolder() as folder:
        report = pathlib.Path(folder) / "report"
        settings = {
            "MOEC_BEAT_CYCLES": repr(1 / memory_share),
            "MOEC_MEMORY_LATENCY": str(memory_latency),
            "MOEC_PIPELINE_DEPTH": str(pipeline_depth),
            "MOEC_PIPELINE_STYLE": pipeline_style or "",
            "MOEC_STAGES": _listed(stages or {}),
            "MOEC_TOTAL_BEAT_CYCLES": repr(1 / total_share) if total_share else "0",
            "MOEC_MEMORIES": _listed(dict(configuration.ports) if memories is None else memories),
            "MOEC_CHANNEL_DEPTHS": _listed({"*": fifo_depths} if isinstance(fifo_depths, int) else fifo_depths or {}),
            "MOEC_REPORT": str(report),
        }
        output = _run(program, files, configuration, settings, timeout)
        calls = [json.loads(line) for line in report.read_text().splitlines()] if report.exists() else []
    if not calls:
        raise MoecError(f"the testbench never called {configuration.top}: nothing was simulated")
    return _timed_result(calls, output)


def _timed_program(
    files: Mapping[str, bytes], configuration: Configuration, compiler: str, watch_dependences: bool
) -> pathlib.Path:
    options = ["-O1", *(_WATCH if watch_dependences else ())]
    instrumented = _instrumented(files, configuration)
    return compile_simulation(instrumented, configuration, "timed", compiler=compiler, options=options)


def _timed_result(calls: Sequence[Mapping[str, Any]], output: str) -> TimedResult:
    """The result from the simulation's report, which has an entry per call of the top function."""
    first, *later = calls
    regions = first["regions"]
    return TimedResult(
        cycles=first["cycles"],
        regions=tuple(RegionTimes(region["name"], region["cycles"]) for region in regions),
        processes=tuple(ProcessTimes(**process) for process in _merged(regions, "processes")),
        channels=tuple(ChannelUse(**channel) for channel in _merged(regions, "channels")),
        later_cycles=tuple(call["cycles"] for call in later),
        output=output,
    )


def _merged(regions: Sequence[Mapping[str, Any]], what: str) -> list[dict[str, Any]]:
    """The processes, or channels, of all runs of regions, with counts summed and the largest peaks."""
    by_name: dict[str, dict[str, Any]] = {}
    for region in regions:
        for entry in region[what]:
            name = entry["name"] if len(regions) == 1 else f"{region['name']}.{entry['name']}"
            before = by_name.setdefault(name, {**entry, "name": name, **dict.fromkeys(_COUNTS & set(entry), 0)})
            before |= {key: before[key] + entry[key] for key in _COUNTS & set(entry)}
            if "peak" in entry:
                before["peak"] = max(before["peak"], entry["peak"])
    return list(by_name.values())


def _texts(files: Mapping[str, bytes]) -> dict[str, str]:
    """The texts of a project's C++ files, without its model of streams, which the simulation replaces."""
    names = [
        name for name in files if name.endswith((".h", ".hpp", ".cpp", ".cc")) and not name.endswith("hls_stream.h")
    ]
    return {name: files[name].decode() for name in sorted(names)}


def _instrumented(files: Mapping[str, bytes], configuration: Configuration) -> dict[str, str]:
    sources = [Source(name, text) for name, text in _texts(files).items()]
    synthesised = [source for source in sources if source.name not in configuration.testbench]
    if not any(has_region(source) for source in synthesised):
        raise MoecError(f"no function of {', '.join(configuration.sources)} has #pragma HLS DATAFLOW: nothing to time")
    return {source.name: instrument(source) if source in synthesised else source.text for source in sources}


def _listed(values: Mapping[str, object]) -> str:
    return ",".join(f"{name}={value}" for name, value in values.items())


def _run(
    program: pathlib.Path,
    files: Mapping[str, bytes],
    configuration: Configuration,
    settings: Mapping[str, str],
    timeout: float,
) -> str:
    with ScratchFolder() as name:
        folder = pathlib.Path(name)
        for path, data in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
        command = ["sh", "-c", _LARGE_STACK, "sh", str(program), *configuration.arguments]
        environment = {**os.environ, **settings}
        try:
            done = subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=timeout
            )
        except subprocess.TimeoutExpired as error:
            raise MoecError(
                f"simulation of {configuration.top}: not finished in {timeout:g} s; give more time"
            ) from error
    if done.returncode != 0:
        raise _failure(configuration.top, done)
    return done.stdout


def _failure(top: str, done: subprocess.CompletedProcess[str]) -> SimulationError:
    kind = _KINDS.get(done.returncode, "crash")
    lines = (done.stdout if kind == "mismatch" else done.stderr).splitlines()
    said = next((line for line in lines if line.strip()), "")
    if kind == "crash":
        by_signal = f"signal {-done.returncode}: an access outside of an array, or the stack is too small"
        said = f"it ended with {by_signal if done.returncode < 0 else f'exit code {done.returncode}'}; {said}"
    return SimulationError(kind, f"simulation of {top}: {said}", done.stdout + done.stderr)
