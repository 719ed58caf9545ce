"""A GPU for tests of the runtime: the emulator with its driver, whose memory is the host's."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from typing import Any

import numpy as np

from moec.runtime.library import load_ffi
from moec.runtime.tensors import CPU, from_runtime, new_tensor, to_runtime
from moec.simulators.cuda.driver import driver_calls, driver_library, emulated_driver
from moec.targets.cuda.device.driver import CUDA


class Calls:
    """The calls of the emulated driver in a context, by name; those of no call are 0."""

    def __enter__(self) -> Calls:
        self._before, self._after = driver_calls(), {}
        return self

    def __exit__(self, *_: object) -> None:
        self._after = driver_calls()

    def __getitem__(self, name: str) -> int:
        return self._after.get(name, 0) - self._before.get(name, 0)


@contextlib.contextmanager
def memory_left(size: int) -> Iterator[None]:
    """Context in which the emulated GPU has so many bytes of memory left."""
    total = ctypes.c_int64.in_dll(ctypes.CDLL(str(driver_library())), "emulated_memory_bytes")
    before = total.value
    total.value -= emulated_driver().free_memory() - size
    try:
        yield
    finally:
        total.value = before


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
