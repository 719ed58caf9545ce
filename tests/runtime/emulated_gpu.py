"""A GPU for tests of the runtime: the emulator, and a driver whose memory is the host's."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from moec.runtime.library import load_ffi
from moec.runtime.tensors import CPU, from_runtime, new_tensor, to_runtime
from moec.targets.cuda.device.captured_runs import CapturedGraphs
from moec.targets.cuda.device.driver import CUDA


class EmulatedDriver:
    """Driver that records its calls. A launch runs the kernels of the captured run on the memory that they had then, as
    a GPU would."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.runs: CapturedGraphs | None = None
        self._graphs = 0

    def use_first_gpu(self) -> None:
        pass

    def new_stream(self) -> int:
        return 7

    def copy_from_host(self, target: int, source: int, size: int, stream: int) -> None:
        self.calls.append(f"copy to stream {stream}")
        ctypes.memmove(target, source, size)

    copy_on_device = copy_from_host

    def begin_capture(self, stream: int) -> None:
        self.calls.append(f"capture stream {stream}")

    def end_capture(self, _stream: int) -> int:
        self._graphs += 1
        return self._graphs

    def launch(self, graph: int, stream: int) -> None:
        self.calls.append(f"launch {graph} on stream {stream}")
        assert self.runs is not None
        captured = next(capture for capture in self.runs._captured.values() if capture.graph == graph)
        results = self.runs._program(captured.arguments, self.runs._weights)
        for target, result in zip(captured.outputs, results, strict=True):
            size = result.numel() * result.dtype.itemsize
            ctypes.memmove(target.data_ptr(), result.data_ptr(), size)

    def forget(self, graph: int) -> None:
        self.calls.append(f"forget {graph}")


class Foreign:
    """An array in the GPU's memory from a library that moec does not know."""

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor

    def __dlpack__(self, **options: Any) -> Any:
        return self.tensor.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.tensor.__dlpack_device__()


def on_gpu(array: np.ndarray) -> Any:
    """Copy an array to the stand-in for the GPU's memory, as the runtime's tensor."""
    source = to_runtime(array)
    tensor = new_tensor(source.shape, source.dtype, CUDA)
    if array.size:
        ctypes.memmove(tensor.data_ptr(), source.data_ptr(), array.nbytes)
    return tensor


def numbers_of(tensor: Any) -> np.ndarray:
    """Copy a result on the GPU to the host."""
    ffi = load_ffi()
    host = new_tensor(tensor.shape, tensor.dtype, CPU)
    ffi.get_global_func("runtime.TVMTensorCopyFromTo")(tensor, host)
    return from_runtime(host)
