"""Kernels over rows as the selector sees them."""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx

from moec.targets.cpu.hardware.machine import Machine
from moec.targets.tvm.kernel import Kernel, in_storage, why_not_stored
from moec.targets.tvm.lower.rows import RowProblem


def row_kernel(name: str, computes: str, build: Callable[[RowProblem, Machine], tirx.PrimFunc]) -> Kernel:
    """The kernel that deals rows to the threads."""

    def how(rows: RowProblem, machine: Machine) -> str:
        words = f"rows dealt to the threads, {2 * machine.lanes} columns at a time ({machine.name})"
        return in_storage(words, rows.dtype)

    return Kernel(name, computes, build, how, why_not=lambda rows, _: why_not_stored(rows.dtype))
