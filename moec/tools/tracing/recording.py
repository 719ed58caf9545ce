"""Recording of a trace: of a language model one prompt and one decode step, of another model its least and its largest
default case."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from moec import targets
from moec.common.errors import DefectError, InputError, UnsupportedError
from moec.common.progress import Progress, silent
from moec.common.work import Argument, Work, work_of
from moec.runtime.generation import prefilled
from moec.runtime.machine import cpu_name
from moec.tools.bench import default_cases
from moec.tools.tracing.recorder import MemoryRecorder, TimeRecorder
from moec.tools.tracing.trace import Counter, Points, Trace, TracedCall, TracedRun

if TYPE_CHECKING:
    from moec.runtime.model import CompiledModel
    from moec.runtime.session import Session

_Result = TypeVar("_Result")

PROMPT = 256
"""Tokens of the prompt by default."""
_MICROSECONDS = 1e6
_ROUNDS_AT_MOST, _SECONDS = 20, 2.0


@dataclasses.dataclass(frozen=True)
class _TracedCase:
    """A run to record. ``prepare`` returns the run of its own inputs, and counts the bytes of its caches."""

    title: str
    prepare: Callable[[], tuple[Callable[[], Any], Callable[[], int]]]


def record_trace(
    compiled: CompiledModel,
    *,
    inputs: Mapping[str, np.ndarray] | None = None,
    prompt: int | None = None,
    depth: int = 0,
    progress: Progress = silent,
) -> Trace:
    """Record single runs: on ``inputs``, where they are given. Otherwise of a language model that keeps states, a
    prompt of ``prompt`` tokens behind ``depth`` others, and the decode step of the next token; of another model the
    smallest and the largest of :func:`moec.tools.bench.default_cases`.

    Every run is recorded several times, and the fastest is kept. Raises UnsupportedError
    for an emulated GPU, whose times have no meaning; InputError for more tokens than the model takes.
    """
    gpu = compiled.gpu
    if gpu is None and targets.program_kind_of(compiled.target).has_device:
        raise UnsupportedError(f"{compiled.artifact.where}: an emulated GPU has no times to trace; run it on a GPU")
    runs = []
    for case in _cases(compiled, inputs, prompt, depth):
        progress(f"tracing: {case.title}")
        runs.append(_record(compiled, case))
    return Trace(compiled.digest, compiled.target, gpu or cpu_name(), compiled.threads, runs)


def _cases(
    compiled: CompiledModel, inputs: Mapping[str, np.ndarray] | None, prompt: int | None, depth: int
) -> Iterator[_TracedCase]:
    session = None if inputs is not None else _session(compiled, prompt, depth)
    if session is not None:
        yield from _session_cases(session, prompt, depth)
        return
    cases = default_cases(compiled) if inputs is None else [inputs]
    for case in cases[:: max(1, len(cases) - 1)]:
        yield _TracedCase(", ".join(f"{name} {_sizes(value)}" for name, value in case.items()), _single(compiled, case))


def _sizes(value: np.ndarray) -> str:
    return " x ".join(map(str, value.shape))


def _single(compiled: CompiledModel, inputs: Mapping[str, np.ndarray]) -> Callable[[], Any]:
    return lambda: (lambda: compiled.run(inputs), lambda: 0)


def _session(compiled: CompiledModel, prompt: int | None, depth: int) -> Session | None:
    """Begin a session. Returns None, unless ``prompt`` is given, for a model that keeps no states or needs inputs of
    unknown meaning."""
    try:
        session = compiled.session(max_tokens=depth + (prompt or PROMPT) + 1)
        session.fork().run(np.zeros((1, session.fixed_length or 1), np.int64))
    except InputError:
        if prompt is not None:
            raise
        return None
    return session if session.is_incremental or prompt is not None else None


def _session_cases(session: Session, prompt: int | None, depth: int) -> Iterator[_TracedCase]:
    step = session.fixed_length or 1
    room = session.max_tokens or 0
    length = prompt or max(1, min(PROMPT, room - depth - step) // step * step)
    ids = np.random.default_rng(0).integers(0, session.vocabulary, depth + length + step)
    if depth:
        prefilled(session, ids[:depth])
    yield _TracedCase(_title("Prompt", length, depth), _continued(session, ids[depth:-step]))
    after = session.fork()
    prefilled(after, ids[depth:-step])
    yield _TracedCase(_title("Decode step", step, depth + length), _continued(after, ids[-step:]))


def _title(kind: str, tokens: int, before: int) -> str:
    count = f" of {_tokens(tokens)}" if tokens > 1 else ""
    return f"{kind}{count} after {_tokens(before)}" if before else f"{kind}{count}"


def _tokens(count: int) -> str:
    return "1 token" if count == 1 else f"{count} tokens"


def _continued(session: Session, ids: np.ndarray) -> Callable[[], Any]:
    def prepare() -> tuple[Callable[[], Any], Callable[[], int]]:
        fork = session.fork()
        return lambda: prefilled(fork, ids), lambda: fork.state_bytes

    return prepare


def _record(compiled: CompiledModel, case: _TracedCase) -> TracedRun:
    unrecorded = min(_repeated(lambda: _timed(case.prepare()[0])))
    recorded = min(_repeated(lambda: _recorded(compiled, case)), key=lambda run: run.duration)
    memory, works = _memory_and_work(compiled, case)
    if memory.calls != [name for name, _, _ in recorded.times.calls]:
        raise DefectError(f"{compiled.artifact.where}: two equal runs of {case.title} make different calls")
    calls = _calls(compiled, recorded, works)
    counters = _counters(compiled, recorded, memory)
    listed = [Counter(name, _steps(points)) for name, points in counters.items() if any(size for _, size in points)]
    return TracedRun(case.title, recorded.duration * _MICROSECONDS, unrecorded * _MICROSECONDS, calls, listed)


def _repeated(once: Callable[[], _Result]) -> list[_Result]:
    """Collect results, at most 20, until two seconds are over. The first is for warming up, and is kept only where it
    is alone."""
    results, end = [], time.perf_counter() + _SECONDS
    while len(results) <= _ROUNDS_AT_MOST and (not results or time.perf_counter() < end):
        results.append(once())
    return results[1:] or results


def _timed(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


@dataclasses.dataclass(frozen=True)
class _Recorded:
    """A recorded run: its beginning and duration in seconds, and the bytes of caches before and after it."""

    times: TimeRecorder
    start: float
    duration: float
    caches: tuple[int, int]

    def microseconds(self, moment: float) -> float:
        """Microseconds from the beginning to a moment."""
        return (moment - self.start) * _MICROSECONDS


def _recorded(compiled: CompiledModel, case: _TracedCase) -> _Recorded:
    run, cache_bytes = case.prepare()
    recorder = TimeRecorder(compiled.probe.finish, lambda: compiled.expert_bytes)
    before = cache_bytes()
    with compiled.probe.instrumented(recorder):
        start = time.perf_counter()
        run()
        duration = time.perf_counter() - start
    return _Recorded(recorder, start, duration, (before, cache_bytes()))


def _memory_and_work(compiled: CompiledModel, case: _TracedCase) -> tuple[MemoryRecorder, list[Work | None]]:
    """Record memory in another run, and list the work of every call; None for functions that compute sizes."""
    works: list[Work | None] = []

    def watch(name: str, arguments: list[Argument]) -> None:
        kernel = compiled.kernels.get(name)
        works.append(None if kernel is None else work_of(kernel.work, arguments))

    run, cache_bytes = case.prepare()
    recorder = MemoryRecorder(compiled.probe.watcher(watch), cache_bytes)
    with compiled.probe.instrumented(recorder):
        run()
    return recorder, works


def _calls(compiled: CompiledModel, recorded: _Recorded, works: Sequence[Work | None]) -> list[TracedCall]:
    nodes = _NodesOfCalls(compiled)
    calls = []
    for (name, start, end), work in zip(recorded.times.calls, works, strict=True):
        operator = compiled.kernels[name].op if name in compiled.kernels else None
        counted = (None, None) if work is None else (work.bytes_moved, work.operations)
        duration = (end - start) * _MICROSECONDS
        calls.append(TracedCall(name, recorded.microseconds(start), duration, operator, nodes.next(name), *counted))
    return calls


def _counters(compiled: CompiledModel, recorded: _Recorded, memory: MemoryRecorder) -> dict[str, Points]:
    """Collect bytes over time, by name."""
    before, after = recorded.caches
    last = recorded.duration * _MICROSECONDS
    begins = [recorded.microseconds(begin) for _, begin, _ in recorded.times.calls]
    ends = [recorded.microseconds(end) for _, _, end in recorded.times.calls]
    weights = sum(weight.bytes for weight in compiled.artifact.manifest.weights)
    return {
        f"Weights, {compiled.placement.pages}": [(0.0, weights)],
        "Tensors": [*zip(begins, memory.live_bytes(), strict=True), (last, 0)],
        "Caches": [(0.0, before), *zip(begins, memory.caches, strict=True), (last, after)],
        "Experts in memory": list(zip(ends, recorded.times.experts, strict=True)),
    }


def _steps(points: Points) -> Points:
    """Leave out points, except the first and the last, that repeat the value before them."""
    last = len(points) - 1
    return [point for place, point in enumerate(points) if place in (0, last) or point[1] != points[place - 1][1]]


class _NodesOfCalls:
    """The nodes that each call of a kernel computes: a run calls it as often as the program does, and the nodes are
    listed in the same order."""

    def __init__(self, compiled: CompiledModel) -> None:
        records = compiled.describe()["kernels"]
        self._kernels = {record["name"]: (record["nodes"], record["calls"]) for record in records}
        self._seen = dict.fromkeys(self._kernels, 0)

    def next(self, kernel: str) -> list[str]:
        """List the nodes of the kernel's next call; all of its nodes where they are not as many for each call."""
        nodes, calls = self._kernels.get(kernel, ([], 0))
        if not calls or len(nodes) % calls:
            return list(nodes)
        place, share = self._seen[kernel] % calls, len(nodes) // calls
        self._seen[kernel] += 1
        return list(nodes[place * share : (place + 1) * share])
