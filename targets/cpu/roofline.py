"""Measures the limits of this machine: the peak of every kind of multiply-add it has, and the bandwidth of memory."""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from moec.common.roofline import Peak, Roofline
from moec.runtime.machine import check_threads
from moec.runtime.pages import new_memory
from moec.runtime.tensors import to_runtime
from moec.runtime.workers import run_with
from moec.targets.cpu.hardware.machine import Machine
from moec.targets.cpu.kernels.peak import MultiplyAdd, instructions, operations_per_round, peak
from moec.targets.cpu.kernels.read_memory import ROW, read_memory

_REPETITIONS = 3
_SECONDS = 0.015
"""Least time of one measurement of a peak."""

MEMORY_BYTES = 1 << 29
"""What a measurement of bandwidth reads: more than caches hold."""


def measure_roofline(threads: int | None = None) -> Roofline:
    """Takes about a second. ``threads``: None means all available cores."""
    threads = check_threads(threads)
    machine = Machine.host()
    bandwidths = {kind: _best_bandwidth(kind, threads) for kind in page_kinds()}
    return Roofline(
        threads,
        bandwidths,
        tuple(_measure_peak(instruction, machine, threads) for instruction in instructions(machine)),
    )


def page_kinds() -> list[str]:
    """The kinds of pages that this system lets a program choose."""
    return ["4K pages", "huge pages"] if hasattr(mmap, "MADV_HUGEPAGE") else ["pages"]


class MemoryReader:
    """A large buffer and a kernel that reads it with all threads. Reading it also empties the caches of all else."""

    def __init__(self, threads: int | None = None, pages: str = "huge pages", size: int = MEMORY_BYTES) -> None:
        self._threads = check_threads(threads)
        data = new_memory(size, huge=pages == "huge pages").view(np.int32)
        rows = data.size // ROW // self._threads
        data.fill(1)  # a page exists only after it was written to
        shaped = data[: self._threads * rows * ROW].reshape(self._threads, rows, ROW)
        self._bytes = shaped.nbytes
        self._arrays = [shaped, np.zeros((self._threads, ROW), np.int32)]
        self._arguments = [to_runtime(array) for array in self._arrays]
        self._kernel = _build(read_memory(), Machine.host())

    def read(self) -> float:
        """Read everything once; bytes per second."""
        return self._bytes / run_with(self._threads, lambda: _seconds(self._kernel, *self._arguments))


def _best_bandwidth(pages: str, threads: int) -> float:
    reader = MemoryReader(threads, pages, MEMORY_BYTES)
    return max(reader.read() for _ in range(_REPETITIONS))


def _measure_peak(instruction: MultiplyAdd, machine: Machine, threads: int) -> Peak:
    kernel = _build(peak(instruction, machine), machine)

    def seconds_of(rounds: int) -> float:
        return run_with(threads, lambda: _seconds(kernel, rounds, threads))

    rounds = 1000
    while seconds_of(rounds) < _SECONDS:
        rounds *= 2
    seconds = min(seconds_of(rounds) for _ in range(_REPETITIONS))
    operations = operations_per_round(instruction) * rounds * threads
    return Peak(instruction.arithmetic, instruction.unit, operations / seconds)


def _seconds(kernel: Callable[..., Any], *arguments: Any) -> float:
    start = time.perf_counter()
    kernel(*arguments)
    return time.perf_counter() - start


def _build(function: Any, machine: Machine) -> Callable[..., Any]:
    import tvm

    from moec.targets.tvm.phases.pipeline import KERNEL_PIPELINE

    module = tvm.IRModule({"kernel": function.with_attr("global_symbol", "kernel")})
    return tvm.tirx.build(module, target=tvm.target.Target(machine.llvm), pipeline=KERNEL_PIPELINE)["kernel"]
