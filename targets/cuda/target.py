"""The CUDA target: compiles models for GPUs of an architecture."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import onnx_ir as ir

from moec.common.errors import UnsupportedError
from moec.common.work import SizedWork
from moec.targets.base import Program
from moec.targets.cuda.hardware.architectures import LIMITS
from moec.targets.tvm.lowering.context import HeavyConverter

_HOST = {"kind": "llvm", "mcpu": "x86-64"}
_DEFAULT = "sm_80"


def converters(architecture: str) -> Mapping[str, HeavyConverter]:
    """The converters of operators that a GPU computes differently: all heavy ones, and those that scatter."""
    from moec.targets.cuda import dense
    from moec.targets.cuda.moe import CudaExpertOps
    from moec.targets.gpu.lowering import scatter
    from moec.targets.tvm.heavy import experts, ranks

    return {
        **dense.converters(architecture),
        **experts.converters(CudaExpertOps(), architecture),
        **ranks.converters(architecture),
        **scatter.CONVERTERS,
    }


@dataclasses.dataclass(frozen=True)
class CudaTarget:
    """A target for NVIDIA's GPUs from ``architecture`` on, through TVM. Compiling needs neither a GPU nor a driver."""

    name: str
    architecture: str

    @staticmethod
    def create(name: str) -> CudaTarget:
        """The target of a name: ``cuda`` (compute capability 8.0 and up), ``cuda:sm_90a``, ... Raises UnsupportedError
        for an unknown architecture."""
        architecture = name.partition(":")[2] or _DEFAULT
        if architecture not in LIMITS:
            raise UnsupportedError(
                f"target '{name}': {architecture!r} is not supported; expected one of {', '.join(LIMITS)}"
            )
        return CudaTarget(name, architecture)

    def compile(self, model: ir.Model) -> Program:
        """Compile the model. Raises UnsupportedError naming node, operator and opset."""
        from moec.targets.tvm import tvm  # isort: skip (first, so that torch is not imported)
        from moec.targets.cuda.launches import LaunchRecorder
        from moec.targets.cuda.pipeline import backend_for
        from moec.targets.gpu.kernels.append import APPEND
        from moec.targets.gpu.kernels.append_rows import PAGE_ROWS, UNPAGE_ROWS
        from moec.targets.gpu.lowering.sampling import export_sampler
        from moec.targets.tvm.heavy.append import holding
        from moec.targets.tvm.kernels.int8_rows import INT8_ROWS
        from moec.targets.tvm.kernels.kernel import STORAGE_TYPES
        from moec.targets.tvm.program import compile_program

        recorder = LaunchRecorder()
        backend = backend_for(self.architecture, recorder)
        target = tvm.target.Target({"kind": "cuda", "arch": self.architecture}, host=_HOST)
        # Loops stay loops in the text; nvcc unrolls where that pays.
        loops_stay = {"tirx.UnrollLoop": {"explicit_unroll": 0}}
        with tvm.transform.PassContext(config=loops_stay, instruments=[recorder]):
            heavy = converters(self.architecture)
            state_calls = holding(
                self.architecture,
                APPEND,
                (PAGE_ROWS, UNPAGE_ROWS),
                (*STORAGE_TYPES, INT8_ROWS),
                has_places=True,
                lengths_in_memory=True,
                batches=True,
            )
            program = compile_program(model, heavy, target, self.name, (), backend, state_calls, sampler=export_sampler)
        for kernel in program.kernels:
            if kernel.launches:
                own = kernel.sized_work or SizedWork()
                kernel.sized_work = dataclasses.replace(own, moved={**recorder.moved[kernel.name], **own.moved})
        return dataclasses.replace(program, architecture=self.architecture, binary_suffix=".fatbin")
