"""The CPU target: the host's processor, or any instruction set by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

import onnx_ir as ir

from moec.targets.base import Program
from moec.targets.cpu.hardware.machine import Machine
from moec.targets.tvm.lowering.context import HeavyConverter

if TYPE_CHECKING:
    from moec.targets.tvm.program import Code


def converters(machine: Machine) -> Mapping[str, HeavyConverter]:
    """All heavy operators on a CPU: the dense ones and those of the moec dialect."""
    from moec.targets.cpu import dense
    from moec.targets.cpu.moe import CpuExpertOps
    from moec.targets.tvm.heavy import experts

    return {**dense.converters(machine), **experts.converters(CpuExpertOps(), machine)}


@dataclasses.dataclass(frozen=True)
class CpuTarget:
    """Compiles models for one :class:`Machine` through TVM. ``codes``: those of the models compiled so far, which equal
    models of other weights share."""

    name: str
    machine: Machine
    codes: dict[str, Code] = dataclasses.field(default_factory=dict, repr=False, compare=False)

    @staticmethod
    def create(name: str) -> CpuTarget:
        """From ``cpu`` (this computer), ``cpu:native``, ``cpu:avx2``, ... Raises UnsupportedError for another ISA."""
        _, _, instruction_set = name.partition(":")
        return CpuTarget(name, Machine.for_name(instruction_set or "native"))

    def compile(self, model: ir.Model) -> Program:
        """Raises UnsupportedError naming node, operator and opset."""
        from moec.targets.cpu.kernels.append import APPEND, PAGE_STATE, UNPAGE_STATE
        from moec.targets.tvm import tvm
        from moec.targets.tvm.heavy.append import holding
        from moec.targets.tvm.kernels.int8_rows import INT8_ROWS
        from moec.targets.tvm.kernels.kernel import STORAGE_TYPES
        from moec.targets.tvm.program import compile_program

        target, types = tvm.target.Target(self.machine.llvm), (*STORAGE_TYPES, INT8_ROWS)
        cache = holding(self.machine, APPEND, (PAGE_STATE, UNPAGE_STATE), types, has_places=True, batches=True)
        heavy, needed = converters(self.machine), self.machine.requirements
        return compile_program(
            model, heavy, target, self.name, needed, holding=cache, streams=True, loops=True, codes=self.codes
        )
