"""Timing on a GPU by CUDA's events.

Only the device is timed: a pause before the first event gives the host time to queue all launches of a call. A
contestant that waits for the device inside its call is timed with its waiting.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any

import torch

_CACHE_BYTES = 256 << 20
"""More than the second-level cache of any GPU. It is written before each call, so that weights come from memory."""
_PAUSE_CYCLES = 1_000_000
"""About half a millisecond."""
_WARM_UP = 3


def interleaved(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Time every call in every round, in seconds. Contestants take turns, so that a GPU that slows down slows all."""
    flushed = torch.empty(_CACHE_BYTES, dtype=torch.uint8, device="cuda")
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(_WARM_UP + rounds):
        for name, call in calls.items():
            seconds = _seconds(call, flushed)
            if turn >= _WARM_UP:
                times[name].append(seconds)
    return times


def _seconds(call: Callable[[], Any], flushed: torch.Tensor) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    flushed.zero_()
    torch.cuda._sleep(_PAUSE_CYCLES)
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def median(seconds: list[float]) -> float:
    return statistics.median(seconds)
