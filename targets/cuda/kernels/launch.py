"""What all kernels written for threads share: sizes of warps, attributes, and grids that are never empty."""

from __future__ import annotations

import math
from typing import Any

from tvm.script import tirx as T

from moec.common.dtypes import dtype_of
from moec.targets.cuda.architectures import WARP as WARP  # kernels take it from here

ALL_LANES = 0xFFFFFFFF
"""The mask of warp instructions that all lanes take part in."""
SHARED_BYTES = 48 * 1024
"""Shared memory that every block may have without asking for more."""
LOAD_BYTES = 16
"""The most bytes that a thread loads or stores at once."""
BEGINS_EARLY = "moec.begins_early"
"""The attribute of kernels that may begin before the one before them has ended (:mod:`..early_launches`)."""
ATTRIBUTES = {"tirx.is_scheduled": True, "tirx.noalias": True}
"""Attributes of every kernel: no schedule changes it, and its tensors do not overlap."""
EARLY_ATTRIBUTES = {**ATTRIBUTES, BEGINS_EARLY: True}
"""Those of kernels that may: few tokens take them about as long as a launch does, and their machine code does not
suffer from tensors that may overlap for all that nvcc knows, as that of products on tensor cores does."""


DEVICE_ATTRIBUTE = "runtime.GetDeviceAttr"
"""The function of TVM's runtime that tells the host about a device."""
_CUDA = 2
"""DLPack's number for NVIDIA's GPUs."""
MULTIPROCESSOR_COUNT = 7
"""TVM's number of the attribute."""


def count_multiprocessors() -> Any:
    """How many multiprocessors the first GPU has, int32, asked on the host before a launch and to be called
    ``multiprocessors``. No result may depend on it."""
    return T.call_packed(DEVICE_ATTRIBUTE, _CUDA, 0, MULTIPROCESSOR_COUNT)


_BLOCKS_IN_GRID = """__forceinline__ __device__ int blocks_in_grid() {
  return gridDim.x;
}
"""


def blocks_in_grid() -> Any:
    """How many blocks of threads there are along x, int32, asked on the device."""
    return T.cuda.func_call("blocks_in_grid", source_code=_BLOCKS_IN_GRID, return_type="int32")


_UNKNOWN_ONE = """__forceinline__ __device__ int unknown_one() {
  return gridDim.y;
}
"""


def unknown_one() -> Any:
    """1, int32, as nvcc does not know it: kernels whose blocks of threads are along x have one along y."""
    return T.cuda.func_call("unknown_one", source_code=_UNKNOWN_ONE, return_type="int32")


def one_block_is_enough() -> Any:
    """Around the code of a kernel: a multiprocessor may hold a single block. Unless told so, ptxas spills rather than
    let fewer blocks share one; and it ignores ``setmaxnreg``, for it has to know how many registers a thread has when
    the kernel begins, which follows from one block's share."""
    return T.attr(0, "tirx.launch_bounds_min_blocks_per_sm", 1)


def blocks_for(items: Any, per_block: int) -> Any:
    """Blocks of a grid for ``items`` (int32): at least one, for CUDA launches no empty grid. Kernels check what is
    theirs."""
    return T.max(T.ceildiv(items, per_block), 1)


def read_at_once(size: int, *dtypes: str) -> int:
    """Neighbouring numbers of a row of ``size`` that one load or store of 16 bytes, or a shorter one, brings, whichever
    of these types they have."""
    return math.gcd(size, LOAD_BYTES // max(dtype_of(dtype).itemsize for dtype in dtypes))


def neighbours(count: int) -> Any:
    """A loop over so many neighbouring bytes: at once, where there is such a load."""
    return T.vectorized(count) if count & (count - 1) == 0 else T.unroll(count)
