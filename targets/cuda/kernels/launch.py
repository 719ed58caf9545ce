"""Common parts of all kernels written thread by thread: constants, attributes, and sizes of grids and loads."""

from __future__ import annotations

import math
from typing import Any

from tvm.script import tirx as T

from moec.common.dtypes import dtype_of
from moec.targets.cuda.architectures import WARP as WARP  # kernels take it from here

ALL_LANES = 0xFFFFFFFF
"""The mask of warp instructions in which all lanes take part."""
SHARED_BYTES = 48 * 1024
"""Shared memory that every block may have without opting in to more."""
LOAD_BYTES = 16
"""The most bytes that a thread loads or stores at once."""
BEGINS_EARLY = "moec.begins_early"
"""The attribute of kernels that may begin before the preceding one has ended (:mod:`..early_launches`)."""
ATTRIBUTES = {"tirx.is_scheduled": True, "tirx.noalias": True}
"""Attributes of every kernel: no schedule changes it, and its tensors do not overlap."""
EARLY_ATTRIBUTES = {**ATTRIBUTES, BEGINS_EARLY: True}
"""Attributes of kernels that may begin early. For few tokens these kernels take about as long as a launch, so they
gain. nvcc then has to assume that their tensors overlap, which makes products on tensor cores slower, but not these."""


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


def one_block_is_enough() -> Any:
    """An attribute around the code of a kernel: a multiprocessor need not hold more than one block.

    Without it, ptxas spills registers to let more blocks share a multiprocessor. It also ignores ``setmaxnreg``,
    because it does not know the number of registers of a thread at the start, which follows from one block's share.
    """
    return T.attr(0, "tirx.launch_bounds_min_blocks_per_sm", 1)


def blocks_for(items: Any, per_block: int) -> Any:
    """The number of blocks of a grid for ``items`` (int32), at least one, because CUDA rejects an empty grid. Kernels
    test whether their items exist."""
    return T.max(T.ceildiv(items, per_block), 1)


def read_at_once(size: int, *dtypes: str) -> int:
    """The number of neighbouring numbers that one load or store moves, at most 16 bytes of any of ``dtypes``. It
    divides ``size``, the numbers of a row, so that every row is aligned."""
    return math.gcd(size, LOAD_BYTES // max(dtype_of(dtype).itemsize for dtype in dtypes))


def neighbours(count: int) -> Any:
    """A loop over ``count`` neighbouring bytes: vectorised if ``count`` is a power of two, otherwise unrolled."""
    return T.vectorized(count) if count & (count - 1) == 0 else T.unroll(count)
