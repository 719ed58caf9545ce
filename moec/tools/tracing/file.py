"""Files of traces: JSON in the Trace Event Format, which Perfetto and Chrome open.

::

    {"traceEvents": [
       {"ph": "M", "pid": 1, "name": "process_name", "args": {"name": "Decode step after 256 tokens"}},
       {"ph": "X", "pid": 1, "tid": 1, "cat": "run", "ts": 0, "dur": 812.5, "name": ..., "args": {"unrecorded": 640.1}},
       {"ph": "X", "pid": 1, "tid": 1, "cat": "kernel", "ts": 10.25, "dur": 31.5, "name": "gemm",
        "args": {"operator": "MatMul", "nodes": [...], "bytes": ..., "operations": ...}},
       {"ph": "C", "pid": 1, "ts": 12.5, "name": "Tensors", "args": {"bytes": 4096}}],
     "displayTimeUnit": "ns",
     "otherData": {"schema": "moec.trace", "version": 1, "artifact": ..., "target": ..., "machine": ..., "threads": 2},
     "digest": ...}

A run is a process; its calls are slices inside of the slice of the run. Calls of category ``sizes`` compute sizes of
tensors. ``ts`` and ``dur`` are microseconds from the beginning of the run. ``digest`` shows that moec wrote the file.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, TypedDict

from moec.common.digested_json import digested_json, foreign_json
from moec.common.errors import MoecError
from moec.common.plain_files import parse_json, read_bytes
from moec.common.records import FieldRule, Size, read_record
from moec.common.replacing import replacing
from moec.tools.tracing.trace import Counter, Trace, TracedCall, TracedRun

SCHEMA, VERSION = "moec.trace", 1
_LARGEST = 256 << 20
_EXPECTED = "expected a file that 'moec bench --trace' wrote"
_THREAD = 1
_Time = Annotated[float, FieldRule(lambda time: 0 <= time < math.inf, "microseconds from 0 up")]


class _TraceHead(TypedDict):
    artifact: str
    target: str
    machine: str
    threads: int


class _Event(TypedDict):
    ph: Literal["M", "X", "C"]
    pid: int
    name: str


class _Slice(TypedDict):
    cat: Literal["run", "kernel", "sizes"]
    ts: _Time
    dur: _Time
    args: dict[str, Any]


class _RunArguments(TypedDict):
    unrecorded: _Time


class _CounterSample(TypedDict):
    ts: _Time
    args: dict[str, Size]


@dataclasses.dataclass(frozen=True)
class _CallArguments:
    operator: str | None = None
    nodes: list[str] = dataclasses.field(default_factory=list)
    bytes: Size | None = None
    operations: Size | None = None


def foreign_trace(path: pathlib.Path) -> str | None:
    """Explain why a file is not an unchanged trace of moec. Returns None where it is one. Raises OSError."""
    return foreign_json(path, _LARGEST)


def write_trace(trace: Trace, path: str | os.PathLike[str]) -> None:
    """Write a trace. An unchanged one of moec is replaced. Raises MoecError."""
    head = {name: value for name, value in dataclasses.asdict(trace).items() if name != "runs"}
    content = {
        "traceEvents": [event for place, run in enumerate(trace.runs, 1) for event in _events(run, place)],
        "displayTimeUnit": "ns",
        "otherData": {"schema": SCHEMA, "version": VERSION, **head},
    }
    with replacing(path, foreign_trace) as aside:
        aside.write_text(digested_json(content), encoding="utf-8")


def _events(run: TracedRun, place: int) -> Iterator[dict[str, Any]]:
    yield {"ph": "M", "pid": place, "name": "process_name", "args": {"name": run.title}}
    yield {"ph": "M", "pid": place, "name": "process_sort_index", "args": {"sort_index": place}}
    yield {"ph": "M", "pid": place, "tid": _THREAD, "name": "thread_name", "args": {"name": "Kernels"}}
    yield _slice(place, "run", run.title, 0.0, run.duration, {"unrecorded": _rounded(run.unrecorded)})
    for call in run.calls:
        named = {"operator": call.operator, "nodes": list(call.nodes), "bytes": call.bytes}
        arguments = {
            name: value for name, value in {**named, "operations": call.operations}.items() if value not in (None, [])
        }
        category = "sizes" if call.operator is None else "kernel"
        yield _slice(place, category, call.kernel, call.start, call.duration, arguments)
    for counter in run.counters:
        for moment, size in counter.points:
            sample = {"ph": "C", "pid": place, "ts": _rounded(moment)}
            yield {**sample, "name": counter.name, "args": {"bytes": size}}


def _slice(place: int, category: str, name: str, start: float, duration: float, args: dict[str, Any]) -> dict[str, Any]:
    where = {"ph": "X", "pid": place, "tid": _THREAD, "cat": category}
    return {**where, "ts": _rounded(start), "dur": _rounded(duration), "name": name, "args": args}


def _rounded(microseconds: float) -> float:
    """Round to nanoseconds."""
    return round(microseconds, 3)


def read_trace(path: str | os.PathLike[str]) -> Trace:
    """Read a trace of moec. Raises MoecError for another file, or a damaged one."""
    try:
        content = parse_json(read_bytes(path, _LARGEST))
    except ValueError as error:
        raise MoecError(f"{path}: is not JSON: {error}; {_EXPECTED}") from None
    head = content.get("otherData") if isinstance(content, dict) else None
    if not isinstance(head, dict) or head.get("schema") != SCHEMA:
        raise MoecError(f"{path}: is not a trace of moec; {_EXPECTED}")
    if head.get("version") != VERSION:
        raise MoecError(f"{path}: is a trace of version {head.get('version')!r}, not {VERSION}; make it again")
    fields = read_record(_TraceHead, head, f"{path}: otherData", _EXPECTED)
    events = read_record(list[_Event], content.get("traceEvents"), f"{path}: traceEvents", _EXPECTED)
    places = dict.fromkeys(event["pid"] for event in events)
    runs = [_run([event for event in events if event["pid"] == place], str(path)) for place in places]
    return Trace(fields["artifact"], fields["target"], fields["machine"], fields["threads"], runs)


def _run(events: list[_Event], where: str) -> TracedRun:
    """Collect the run of one process."""
    whole: tuple[str, _Slice] | None = None
    calls: list[TracedCall] = []
    counters: dict[str, list[tuple[float, int]]] = {}
    for event in events:
        place = f"{where}: event {event['name'][:80]!r}"
        if event["ph"] == "C":
            sample = read_record(_CounterSample, event, place, _EXPECTED)
            counters.setdefault(event["name"], []).append((sample["ts"], sample["args"].get("bytes", 0)))
        elif event["ph"] == "X":
            part = read_record(_Slice, event, place, _EXPECTED)
            if part["cat"] == "run":
                whole = event["name"], part
            else:
                calls.append(_call(event["name"], part, place))
    if whole is None:
        raise MoecError(f"{where}: lacks the event of a run; {_EXPECTED}")
    title, part = whole
    unrecorded = read_record(_RunArguments, part["args"], f"{where}: event {title[:80]!r}", _EXPECTED)["unrecorded"]
    listed = [Counter(name, sorted(points)) for name, points in counters.items()]
    return TracedRun(title, part["dur"], unrecorded, sorted(calls, key=lambda call: call.start), listed)


def _call(name: str, part: Mapping[str, Any], where: str) -> TracedCall:
    arguments = read_record(_CallArguments, part["args"], where, _EXPECTED)
    return TracedCall(name, part["ts"], part["dur"], **dataclasses.asdict(arguments))
