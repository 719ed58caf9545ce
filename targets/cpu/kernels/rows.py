"""Kernels over rows as the selector sees them."""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx

from moec.targets.cpu.hardware.machine import Machine
from moec.targets.tvm.heavy.rows import RowProblem
from moec.targets.tvm.kernels.kernel import Kernel, in_storage, why_not_stored


def row_kernel(name: str, computes: str, build: Callable[[RowProblem, Machine], tirx.PrimFunc]) -> Kernel:
    """The kernel that deals rows to the threads."""

    def how(rows: RowProblem, machine: Machine) -> str:
        words = f"rows dealt to the threads, {2 * machine.lanes} columns at a time ({machine.name})"
        return in_storage(words, rows.dtype)

    return Kernel(name, computes, build, how, why_not=lambda rows, _: why_not_stored(rows.dtype))
