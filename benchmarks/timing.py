"""Helpers that the benchmarks share: interleaved timing and peak memory."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

PAUSE_SECONDS = 0.02
"""Idle time before every call, because threads of the previous contestant that still spin would take cores from the
next."""

MOST_RUNS = 100


def pause() -> None:
    time.sleep(PAUSE_SECONDS)


def timed(call: Callable[[], Any]) -> Callable[[], float]:
    """Make a function that runs the call and returns its seconds."""

    def run() -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    return run


def interleaved(
    calls: Mapping[str, Callable[[], float]],
    seconds: float,
    least: int = 5,
    before: Callable[[], Any] = pause,
) -> dict[str, list[float]]:
    """Run ``calls``, each of which returns its own seconds, in turns, round after round. Returns all results by name.

    Interleaving exposes every contestant to the same noise of the machine. ``before`` is called before every call. A
    contestant with ``least`` runs and ``seconds`` of time drops out, so that slow ones do not delay the others.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    spent = dict.fromkeys(calls, 0.0)
    waiting = list(calls)
    while waiting:
        for name in waiting:
            start = time.perf_counter()
            before()
            times[name].append(calls[name]())
            spent[name] += time.perf_counter() - start
        waiting = [name for name in waiting if len(times[name]) < least or spent[name] < seconds]
        waiting = [name for name in waiting if len(times[name]) < MOST_RUNS]
    return times


def summary(times: Sequence[float]) -> dict[str, float]:
    """Minimum and median, in milliseconds."""
    return {"min_ms": min(times) * 1e3, "median_ms": statistics.median(times) * 1e3}


def peak_memory_mb() -> float:
    """Largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
