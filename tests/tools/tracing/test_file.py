"""Files of traces: events of the Trace Event Format that are read back, and what else is refused."""

from __future__ import annotations

import json

import pytest

from moec.common.errors import MoecError
from moec.common.replacing import check_replaceable
from moec.tools.tracing.file import foreign_trace, read_trace, write_trace
from moec.tools.tracing.trace import Counter, Trace, TracedCall, TracedRun

CALLS = [TracedCall("shape_func", 0.5, 0.25, nodes=[]), TracedCall("gemm", 1.0, 2.125, "MatMul", ["a", "b"], 64, 8)]
RUN = TracedRun("Prompt", 4.0, 3.5, CALLS, [Counter("Tensors", [(1.0, 64), (4.0, 0)])])
TRACE = Trace("d" * 64, "cpu", "a processor", 2, [RUN, TracedRun("Decode step", 1.0, 1.0, [], [])])


@pytest.fixture
def path(tmp_path):
    written = tmp_path / "trace.json"
    write_trace(TRACE, written)
    return written


def test_a_trace_is_read_as_it_was_written(path):
    assert read_trace(path) == TRACE


def test_events_have_the_fields_of_the_trace_event_format(path):
    content = json.loads(path.read_text())
    assert content["displayTimeUnit"] in ("ns", "ms")
    needed = {"M": {"name", "pid", "args"}, "X": {"name", "cat", "pid", "tid", "ts", "dur"}, "C": {"name", "pid", "ts"}}
    for event in content["traceEvents"]:
        assert needed[event["ph"]] <= event.keys()
    names = [event["args"]["name"] for event in content["traceEvents"] if event["name"] == "process_name"]
    assert names == ["Prompt", "Decode step"]
    gemm = next(event for event in content["traceEvents"] if event["name"] == "gemm")
    assert gemm["args"] == {"operator": "MatMul", "nodes": ["a", "b"], "bytes": 64, "operations": 8}


def test_a_trace_is_replaced_and_no_other_file(path):
    before = path.read_bytes()
    write_trace(TRACE, path)
    assert path.read_bytes() == before
    path.write_text(path.read_text().replace("gemm", "gemv"))
    with pytest.raises(MoecError, match="was changed since moec wrote it"):
        write_trace(TRACE, path)
    path.write_text('{"traceEvents": []}')
    with pytest.raises(MoecError, match="that moec did not write"):
        check_replaceable(path, foreign_trace)
    assert path.read_text() == '{"traceEvents": []}'


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "is not JSON"),
        ("[]", "is not a trace of moec; expected a file that 'moec bench --trace' wrote"),
        ('{"traceEvents": [], "otherData": {"tool": "another"}}', "is not a trace of moec"),
        ('{"otherData": {"schema": "moec.trace", "version": 9}}', "version 9, not 1; make it again"),
        ('{"otherData": {"schema": "moec.trace", "version": 1}}', "artifact is missing"),
    ],
)
def test_other_files_are_refused(tmp_path, text, message):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(MoecError, match=message) as refused:
        read_trace(path)
    assert str(refused.value).startswith(str(path)) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "event, message",
    [
        ({"ph": "X", "pid": 1, "name": "k", "cat": "kernel", "ts": -1, "dur": 1, "args": {}}, "expected microseconds"),
        ({"ph": "X", "pid": 1, "name": "k", "cat": "kernel", "ts": float("nan"), "dur": 1, "args": {}}, "ts is NaN"),
        ({"ph": "X", "pid": 1, "name": "k", "cat": "kernel", "ts": 1, "dur": 1, "args": {"x": 1}}, "unknown field 'x'"),
        ({"ph": "C", "pid": 1, "name": "c", "ts": 1, "args": {"bytes": -4}}, "a whole number from 0 up"),
        ({"ph": "B", "pid": 1, "name": "b"}, 'ph is "B"; expected one of'),
        ({"ph": "M", "pid": 7, "name": "process_name"}, "lacks the event of a run"),
        ({"ph": "X", "pid": "1"}, "is missing"),
    ],
)
def test_damaged_events_are_refused(path, event, message):
    content = json.loads(path.read_text())
    content["traceEvents"].append(event)
    path.write_text(json.dumps(content))
    with pytest.raises(MoecError, match=message):
        read_trace(path)
