"""NVIDIA's GPUs as devices of the runtime: find one, and load the code of an artifact that it can run."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from moec.common.dtypes import DTYPES
from moec.common.errors import ArtifactError, MoecError
from moec.runtime.artifact import Artifact
from moec.runtime.device import GLOO
from moec.runtime.gpu import GpuDevice, ModuleLoader
from moec.runtime.library import load_ffi
from moec.runtime.on_device import OnDevice
from moec.runtime.program import LoadedProgram
from moec.runtime.streams import Streams
from moec.targets.cuda.device.captured_runs import CapturedGraphs
from moec.targets.cuda.device.driver import CUDA, Driver, open_driver
from moec.targets.cuda.device.errors import explain_gpu_error
from moec.targets.cuda.device.pinned import MOST_PINNED, InputBlock, OutputBlock
from moec.targets.cuda.hardware.architectures import LIMITS, newest_that_runs

CUDA_MAJOR = 13
"""The version of CUDA that TVM's library for GPUs is linked with. A driver supports its own version and older ones."""
_RUNTIME, _TVM_LIBRARY = f"libcudart.so.{CUDA_MAJOR}", "libtvm_runtime_cuda.so"
_RUNTIME_PACKAGE = f"nvidia.cu{CUDA_MAJOR}"
_LOADER = "ffi.Module.load_from_bytes.cuda"
_HINT = "run it without one by: moec run --emulate, or moec.load(..., emulate=True)"


class CudaGpu(GpuDevice):
    """A GPU that runs programs of artifacts. ``is_emulated``: whether its ``driver`` is the emulator's."""

    number = CUDA
    blob_loader = _LOADER
    streams = Streams(CUDA)

    def __init__(
        self, module_loader: ModuleLoader, driver: Driver, architecture: str | None, *, is_emulated: bool = False
    ) -> None:
        super().__init__(module_loader, architecture)
        self.driver, self._is_emulated = driver, is_emulated
        self._outputs = OutputBlock(driver, self.streams)

    @property
    def gpu(self) -> str | None:
        return None if self._is_emulated else self.driver.gpus()[0].name

    @property
    def backend(self) -> str:
        return GLOO if self._is_emulated else "cpu:gloo,cuda:nccl"

    def with_code(self, binary: bytes) -> CudaGpu:
        return self if self._is_emulated else CudaGpu(_loader(binary), self.driver, self.architecture)

    def torch_stream(self) -> int:
        return int(sys.modules["torch"].cuda.current_stream(0).cuda_stream)

    def placing(self) -> Callable[[Sequence[np.ndarray | OnDevice]], list[Any]]:
        block = InputBlock(self.driver, self.streams)

        def place(arrays: Sequence[np.ndarray | OnDevice]) -> list[Any]:
            if self.is_capturing:  # what a graph reads has to stay
                return [*map(self.place, arrays)]
            placed = iter(block.place([array for array in arrays if isinstance(array, np.ndarray)]))
            return [next(placed) if isinstance(array, np.ndarray) else self.place(array) for array in arrays]

        return place

    def fetch_all(self, tensors: Sequence[Any]) -> list[np.ndarray]:
        types = [DTYPES[str(tensor.dtype)] for tensor in tensors]
        size = sum(tensor.numel() * dtype.itemsize for tensor, dtype in zip(tensors, types, strict=True))
        return [*map(self.fetch, tensors)] if size > MOST_PINNED else self._outputs.fetch(tensors, types)

    @contextlib.contextmanager
    def working(self, arrays: Sequence[np.ndarray | OnDevice], *, waits: bool = False) -> Iterator[None]:
        self.driver.use_first_gpu()
        with self.driver.relaxed(), super().working(arrays, waits=waits):
            yield

    @property
    def free_bytes(self) -> int:
        return self.driver.free_memory()

    def is_captured(self, stream: int) -> bool:
        return self.driver.is_capturing(stream)

    def copying_on_device(self, tensor: Any, result: Any) -> None:
        size = tensor.numel() * DTYPES[str(tensor.dtype)].itemsize
        self.driver.copy_on_device(result.data_ptr(), tensor.data_ptr(), size, self.streams.current())

    def captured_runs(self, program: LoadedProgram, weights: Sequence[Any]) -> CapturedGraphs:
        return CapturedGraphs(program, weights, self.driver, self.streams)

    def explain(self, error: Exception) -> MoecError | None:
        return explain_gpu_error(str(error))


def gpu(artifact: Artifact, architecture: str | None = None) -> CudaGpu:
    """The first GPU, ready to load the artifact's code for ``architecture``, by default the best that it can run.

    Raises MoecError if there is no GPU, if the driver is missing or too old, or if CUDA's runtime library is missing;
    ArtifactError if the artifact has no code for the GPU.
    """
    try:
        driver = open_driver()
    except MoecError as error:
        raise MoecError(f"{artifact.where}: needs a GPU, but {error}; {_HINT}") from error
    capability = _check_gpu(driver, artifact.where)
    programs = artifact.manifest.programs if architecture is None else [artifact.program(architecture)]
    code = {program.architecture: program.binary for program in programs if program.binary is not None}
    best = best_binary(list(code), capability, artifact.where)
    binary = artifact.path(code[best]).read_bytes()
    _load_libraries()
    return CudaGpu(_loader(binary), driver, best)


def _loader(binary: bytes) -> ModuleLoader:
    load = load_ffi().get_global_func(_LOADER)
    return lambda module: load(module.with_code("cubin", binary))


def _check_gpu(driver: Driver, where: str) -> str:
    """The compute capability of the first GPU. Raises MoecError if there is none, or if the driver is too old."""
    gpus = driver.gpus()
    if not gpus:
        raise MoecError(f"{where}: needs a GPU, but the driver finds none (see CUDA_VISIBLE_DEVICES); {_HINT}")
    if driver.version[0] < CUDA_MAJOR:
        cuda = ".".join(map(str, driver.version))
        raise MoecError(f"{where}: the driver is for CUDA {cuda}; expected {CUDA_MAJOR}; install a newer one")
    return gpus[0].capability


def _load_libraries() -> None:
    """Load CUDA's runtime and TVM's library for GPUs, which registers itself. Raises MoecError if one is missing."""
    load_ffi()
    tvm = importlib.util.find_spec("tvm")
    assert tvm is not None and tvm.origin is not None
    try:
        ctypes.CDLL(str(_runtime_library()), ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(pathlib.Path(tvm.origin).parent / "lib" / _TVM_LIBRARY), ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise MoecError(
            f"CUDA's runtime cannot be loaded ({error}); install it with: pip install 'moec[cuda]'"
        ) from error


def _runtime_library() -> pathlib.Path:
    """CUDA's runtime library: from NVIDIA's Python package if that is installed, otherwise that of the system."""
    try:
        package = importlib.util.find_spec(_RUNTIME_PACKAGE)
    except ModuleNotFoundError:
        package = None
    for folder in (package.submodule_search_locations or []) if package else []:
        packaged = pathlib.Path(folder) / "lib" / _RUNTIME
        if packaged.is_file():
            return packaged
    return pathlib.Path(_RUNTIME)


def best_binary(architectures: list[str], capability: str, where: str) -> str:
    """The newest of ``architectures`` whose code runs on a GPU of compute capability ``capability`` (see
    :func:`newest_that_runs`). Raises ArtifactError if there is none; ``where``: the artifact, for messages."""
    best = newest_that_runs(architectures, capability)
    if best is not None:
        return best
    if not architectures:
        raise ArtifactError(
            f"{where}: has no code for a GPU, because nvcc was not found; compile it where nvcc is installed"
        )
    listed, gpu_architecture = ", ".join(architectures), f"sm_{capability.replace('.', '')}"
    target = newest_that_runs(LIMITS, capability)
    hint = f"compile it with --target cuda:{target}" if target else f"use a GPU of {next(iter(LIMITS))} or newer"
    raise ArtifactError(f"{where}: has code for {listed}; expected code for the GPU, {gpu_architecture}; {hint}")
