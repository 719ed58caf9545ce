"""Facts of a launch that only the host or the device knows: multiprocessors, and the size of the grid."""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

DEVICE_ATTRIBUTE = "runtime.GetDeviceAttr"
"""The function of TVM's runtime that returns an attribute of a device on the host."""
_CUDA = 2
"""DLPack's number for NVIDIA's GPUs."""
MULTIPROCESSOR_COUNT = 7
"""TVM's number for the attribute."""


def count_multiprocessors() -> Any:
    """The number of multiprocessors of the first GPU, int32, which the host asks for before a launch. Kernels have to
    bind it to a variable ``multiprocessors``. No result may depend on it."""
    return T.call_packed(DEVICE_ATTRIBUTE, _CUDA, 0, MULTIPROCESSOR_COUNT)


_BLOCKS_IN_GRID = """__forceinline__ __device__ int blocks_in_grid() {
  return gridDim.x;
}
"""


def blocks_in_grid() -> Any:
    """The number of blocks of threads along x, int32, read on the device."""
    return T.cuda.func_call("blocks_in_grid", source_code=_BLOCKS_IN_GRID, return_type="int32")


_UNKNOWN_ONE = """__forceinline__ __device__ int unknown_one() {
  return gridDim.y;
}
"""


def unknown_one() -> Any:
    """The number 1, int32, as a value that nvcc does not know: grids along x have one block along y."""
    return T.cuda.func_call("unknown_one", source_code=_UNKNOWN_ONE, return_type="int32")
