"""Traces as data: runs with their calls of kernels and counters over time. Times are in microseconds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

Points = Sequence[tuple[float, int]]
"""Moments, and the value from each on."""


@dataclasses.dataclass(frozen=True)
class TracedCall:
    """One call. ``operator``: of a kernel; None for a function that computes sizes. ``nodes``: the nodes that it
    computes, as far as known. ``bytes``, ``operations``: its work, where it is counted."""

    kernel: str
    start: float
    duration: float
    operator: str | None = None
    nodes: Sequence[str] = ()
    bytes: int | None = None
    operations: int | None = None


@dataclasses.dataclass(frozen=True)
class Counter:
    """Bytes over time."""

    name: str
    points: Points


@dataclasses.dataclass(frozen=True)
class TracedRun:
    """One recorded run, the fastest of several. ``duration``: of the whole run as it was recorded, which takes time,
    too; ``unrecorded``: of the fastest that was not."""

    title: str
    duration: float
    unrecorded: float
    calls: Sequence[TracedCall]
    counters: Sequence[Counter]


@dataclasses.dataclass(frozen=True)
class Trace:
    """Runs of one model. ``artifact``: its digest. ``machine``: the name of the processor or the GPU."""

    artifact: str
    target: str
    machine: str
    threads: int
    runs: Sequence[TracedRun]
