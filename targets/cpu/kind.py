"""The CPU as a kind of target."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from moec.targets.kind import Form, Options, ProgramKind

if TYPE_CHECKING:
    from moec.common.crossovers import Tuned
    from moec.common.roofline import Roofline
    from moec.runtime.model import CompiledModel
    from moec.targets.base import Target


class CpuKind(ProgramKind):
    """The processor of this computer, or another instruction set by name."""

    name = "cpu"
    examples = ("cpu", "cpu:avx2")
    streams_experts = True
    exchanges_rows = True
    multiplies_bytes = True
    forms = (Form("llvm", ".ll", ";"), Form("asm", ".s", "#"))

    def target(self, name: str, options: Options | None = None) -> Target:
        from moec.targets.cpu.target import CpuTarget

        return CpuTarget.create(name)

    def processor(self, name: str) -> str | None:
        from moec.targets.cpu.target import CpuTarget

        return CpuTarget.create(name).machine.triple.partition("-")[0]

    def measure_roofline(self, threads: int) -> Roofline:
        from moec.targets.cpu.roofline import measure_roofline

        return measure_roofline(threads)

    def tune(self, compiled: CompiledModel, progress: Callable[[str], None]) -> list[Tuned]:
        from moec.tools.tune import measure_kernels

        return measure_kernels(compiled, progress)
