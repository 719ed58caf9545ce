"""Section ``timeline``: the calls of kernels in recorded runs over time, with memory and caches."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from moec.exploring.subject import Subject
from moec.runtime.manifest import digest_of
from moec.tools.tracing.trace import TracedCall, TracedRun


def timeline(subject: Subject) -> dict[str, Any] | None:
    """Describe recorded runs as plain data; None where no trace is given. Times are measured microseconds.

    Each of ``cases`` has a ``title``; the ``microseconds`` of the recorded run, of its kernels alone
    (``kernel_microseconds``) and of runs that were not recorded (``unrecorded``); ``calls``, in order, with the first
    of the nodes that each computes; ``kernels``, slowest first, with number, total and median of their calls, and their
    share of the time of all; and ``counters`` of bytes, as (moment, bytes from then on). ``foreign``: kernels that the
    artifact does not have; ``is_own``: whether the trace is of this very artifact.
    """
    trace = subject.trace
    if trace is None:
        return None
    own_kernels = {kernel["name"] for kernel in subject.description["kernels"]}
    calls = (call for run in trace.runs for call in run.calls)
    foreign = {call.kernel for call in calls if call.operator is not None} - own_kernels
    return {
        "machine": trace.machine,
        "threads": trace.threads,
        "is_own": trace.artifact == digest_of(subject.artifact.manifest),
        "foreign": sorted(foreign),
        "cases": [_case(run) for run in trace.runs],
    }


def _case(run: TracedRun) -> dict[str, Any]:
    return {
        "title": run.title,
        "microseconds": run.duration,
        "unrecorded": run.unrecorded,
        "kernel_microseconds": sum(call.duration for call in run.calls),
        "calls": [_call(call) for call in run.calls],
        "kernels": _kernels(run.calls),
        "counters": [{"name": counter.name, "points": list(counter.points)} for counter in run.counters],
    }


def _call(call: TracedCall) -> dict[str, Any]:
    return {
        "kernel": call.kernel,
        "start": call.start,
        "duration": call.duration,
        "node": next(iter(call.nodes), None),
        "bytes": call.bytes,
        "operations": call.operations,
    }


def _kernels(calls: Sequence[TracedCall]) -> list[dict[str, Any]]:
    durations: dict[tuple[str, str | None], list[float]] = {}
    for call in calls:
        durations.setdefault((call.kernel, call.operator), []).append(call.duration)
    whole = sum(call.duration for call in calls)
    rows = [
        {
            "name": name,
            "op": operator,
            "calls": len(own),
            "microseconds": sum(own),
            "median": statistics.median(own),
            "share": sum(own) / whole if whole else 0.0,
        }
        for (name, operator), own in durations.items()
    ]
    return sorted(rows, key=lambda row: -row["microseconds"])
