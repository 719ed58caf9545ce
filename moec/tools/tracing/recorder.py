"""Recorders of runs, as instruments of a program: of the times of calls, and of the calls' work and memory. They take
separate runs, because reading arguments takes time."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

from moec.common.dtypes import dtype_of
from moec.runtime.probe import tensors_of
from moec.runtime.program import BUILTIN, NO_INSTRUMENT_ACTION, Instrument

_ALLOCATE = f"{BUILTIN}alloc_tensor"


class TimeRecorder:
    """Recorder of times. ``calls``: name, start and end of each call, in seconds of :func:`time.perf_counter`.
    ``experts``: bytes of streamed experts in memory after each call. Its own time lies between calls."""

    def __init__(self, finish: Callable[[], None], experts_in_memory: Callable[[], int]) -> None:
        """``finish``: waits for the device. ``experts_in_memory``: counts bytes."""
        self._finish, self._experts_in_memory = finish, experts_in_memory
        self._start = 0.0
        self.calls: list[tuple[str, float, float]] = []
        self.experts: list[int] = []

    def __call__(self, _function: Any, symbol: str, before: bool, _result: Any, *_arguments: Any) -> int:
        """Record a call. The runtime calls it before and after each."""
        if before:
            self._start = time.perf_counter()
        elif not symbol.startswith(BUILTIN):
            self._finish()
            self.calls.append((symbol, self._start, time.perf_counter()))
            self.experts.append(self._experts_in_memory())
        return NO_INSTRUMENT_ACTION


@dataclasses.dataclass
class _Tensor:
    """Memory of one intermediate tensor. ``first``, ``last``: numbers of the calls that use it."""

    bytes: int
    first: int
    last: int


class MemoryRecorder:
    """Recorder of calls, by name, of the memory of tensors, and of the bytes of ``caches`` during each call."""

    def __init__(self, watcher: Instrument, cache_bytes: Callable[[], int]) -> None:
        """``watcher``: another instrument, for the same run. ``cache_bytes``: counts the bytes of caches."""
        self._watcher, self._cache_bytes = watcher, cache_bytes
        self._tensors: list[_Tensor] = []
        self._at: dict[int, _Tensor] = {}  # the latest tensor at each address, which later ones take again
        self.calls: list[str] = []
        self.caches: list[int] = []

    def __call__(self, function: Any, symbol: str, before: bool, result: Any, *arguments: Any) -> int:
        """Record a call. The runtime calls it before and after each."""
        if not before:
            if symbol == _ALLOCATE:
                self._allocate(result)
            for tensor in tensors_of(arguments):
                if tensor.data_ptr() in self._at:
                    self._at[tensor.data_ptr()].last = len(self.calls)
            if not symbol.startswith(BUILTIN):
                self.calls.append(symbol)
                self.caches.append(self._cache_bytes())
        return self._watcher(function, symbol, before, result, *arguments)

    def _allocate(self, tensor: Any) -> None:
        size = math.prod(tensor.shape) * dtype_of(str(tensor.dtype)).itemsize
        self._at[tensor.data_ptr()] = new = _Tensor(size, len(self.calls), len(self.calls))
        self._tensors.append(new)

    def live_bytes(self) -> list[int]:
        """Sum up, during each call, the bytes of the tensors that it or a later call uses. Tensors of the caller,
        weights and kernels' own memory do not count."""
        changes = [0] * (len(self.calls) + 2)
        for tensor in self._tensors:
            changes[tensor.first] += tensor.bytes
            changes[tensor.last + 1] -= tensor.bytes
        live, sums = 0, []
        for change in changes[: len(self.calls)]:
            live += change
            sums.append(live)
        return sums
