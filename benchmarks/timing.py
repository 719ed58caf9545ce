"""What the benchmarks share: interleaved timing, peak memory, and a table in markdown and JSON."""

from __future__ import annotations

import json
import pathlib
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

PAUSE_SECONDS = 0.02
"""Idle time before every call: threads of the previous contestant that still spin would steal cores from the next."""


def interleaved(calls: Mapping[str, Callable[[], Any]], seconds: float = 2.0, least: int = 5) -> dict[str, list[float]]:
    """Run all ``calls`` in turn, round after round, until ``seconds`` have passed and ``least`` rounds are done.

    Interleaving exposes every contestant to the same noise of the machine; the first round warms up and is dropped.
    All start from idle threads (see ``PAUSE_SECONDS``).
    Returns seconds per call by name.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < least:
        for name, call in calls.items():
            time.sleep(PAUSE_SECONDS)
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return times


def summary(times: Sequence[float]) -> dict[str, float]:
    """Minimum and median, in milliseconds."""
    return {"min_ms": min(times) * 1e3, "median_ms": statistics.median(times) * 1e3}


def peak_memory_mb() -> float:
    """Largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def print_markdown(rows: Sequence[Mapping[str, Any]]) -> None:
    columns = list(rows[0])
    print("| " + " | ".join(columns) + " |")
    print("|" + " --- |" * len(columns))
    for row in rows:
        print("| " + " | ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()) + " |")


def write_json(path: str, rows: Sequence[Mapping[str, Any]]) -> None:
    pathlib.Path(path).write_text(json.dumps(list(rows), indent=1) + "\n")
