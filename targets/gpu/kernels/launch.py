"""Common parts of all kernels written thread by thread: constants, attributes, and sizes of grids and loads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tvm.script import tirx as T

from moec.common.dtypes import dtype_of
from moec.targets.gpu.constants import WARP as WARP  # kernels take it from here

SHARED_BYTES = 48 * 1024
"""Shared memory that every block may have without opting in to more."""
LOAD_BYTES = 16
"""The most bytes that a thread loads or stores at once."""
BEGINS_EARLY = "moec.begins_early"
"""The attribute of kernels that may begin before the preceding one has ended, where the GPU has a way to do that."""
ATTRIBUTES = {"tirx.is_scheduled": True, "tirx.noalias": True}
"""Attributes of every kernel: no schedule changes it, and its tensors do not overlap."""
EARLY_ATTRIBUTES = {**ATTRIBUTES, BEGINS_EARLY: True}
"""Attributes of kernels that may begin early. For few tokens these kernels take about as long as a launch, so they
gain. nvcc then has to assume that their tensors overlap, which makes products on tensor cores slower, but not these."""
BEFORE_WAIT = "moec.before_wait"
"""The attribute around statements of a kernel that begins early which do not wait for the preceding one. They only
fetch what will be read later, since what they read may change. Where kernels do not begin early, they are left out."""

TAKES = "moec.takes"
"""The attribute of a kernel with the index of an operand that others may compute. Each thread reads the elements that
it needs by loads of their own; none reads an element that another thread of the launch writes."""
STORING = "moec.storing"
"""The attribute with another form of the kernel, for operands that are stored. It has the same parameters, and between
inputs and outputs a tensor in the shape of the operand, to which it copies the operand before it reads it there."""

BESIDE = "moec.beside"
"""The attribute of kernels that may share a launch with others. Their grids have one axis."""


def one_block_is_enough() -> Any:
    """An attribute around the code of a kernel: a multiprocessor need not hold more than one block.

    Without it, ptxas spills registers to let more blocks share a multiprocessor. It also ignores ``setmaxnreg``,
    because it does not know the number of registers of a thread at the start, which follows from one block's share.
    """
    return T.attr(0, "tirx.launch_bounds_min_blocks_per_sm", 1)


def blocks_for(items: Any, per_block: int) -> Any:
    """The number of blocks of a grid for ``items``, in their type, at least one, because an empty grid is rejected.
    Kernels test whether their items exist."""
    return T.max(T.ceildiv(items, per_block), 1)


def read_at_once(size: int, *dtypes: str) -> int:
    """The number of neighbouring numbers that one load or store moves, at most 16 bytes of any of ``dtypes``. It
    divides ``size``, the numbers of a row, so that every row is aligned."""
    return math.gcd(size, LOAD_BYTES // max(dtype_of(dtype).itemsize for dtype in dtypes))


def neighbours(count: int) -> Any:
    """A loop over ``count`` neighbouring bytes: vectorised if ``count`` is a power of two, otherwise unrolled."""
    return T.vectorized(count) if count & (count - 1) == 0 else T.unroll(count)


def indices_of(index: Any, sizes: Sequence[Any], together: int = 1) -> list[Any]:
    """The index in each axis for a flat index of groups of ``together`` numbers; in the last axis, that of the group's
    first number."""
    indices: list[Any] = []
    for axis, size in reversed(list(enumerate(sizes))):
        count = size // together if axis == len(sizes) - 1 else size
        indices.append(index % count if axis else index)
        index = index // count
    indices[0] = indices[0] * together
    return indices[::-1]
