"""Times of work on a device: after other data went through its caches, and with all launches queued beforehand."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

_FLUSHED_BYTES = 128 << 20
_PAUSE_CYCLES = 2_000_000
"""About a millisecond, in which the host queues what is timed."""
ROUNDS = 20


class Stopwatch:
    """Timing on a device. ``measures``: the device code of the kit's measurements."""

    def __init__(self, device: Any, measures: Any, rounds: int = ROUNDS) -> None:
        self._device, self._measures = device, measures
        self._rounds = 0 if device.emulated else rounds
        self._flushed = 0 if device.emulated else device.memory(_FLUSHED_BYTES)

    def seconds(self, work: Callable[[], None], *, flushes: bool = True) -> tuple[float, float]:
        """Time work in several rounds, after one that does not count. Returns the least and the median."""
        times = [self._once(work, flushes) for _ in range(self._rounds + 1)]
        times = times[1:] or times
        return min(times), statistics.median(times)

    def _once(self, work: Callable[[], None], flushes: bool) -> float:
        if not self._device.emulated:
            if flushes:
                self._device.clear(self._flushed, _FLUSHED_BYTES)
            self._pause()
        return float(self._device.seconds(work))

    def clock(self) -> float:
        """Measure the clock of the multiprocessors in Hz, as it is after the work before. Not for the emulator."""
        self._pause()
        return float(_PAUSE_CYCLES / self._device.seconds(self._pause))

    def _pause(self) -> None:
        arguments = [["int64", _PAUSE_CYCLES]]
        self._device.launch(self._measures, "kit_spin", arguments, {"blockIdx.x": 1, "threadIdx.x": 32})
