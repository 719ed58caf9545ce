"""Rows rounded as arithmetic ``int8`` asks for, see :class:`~moec.ir.dialect.ProductSpec`, and kept as floats.

Every group of a row becomes ``scale * q`` with ``scale = largest magnitude / 127`` and ``q = round half to even(x /
scale)``, computed in float32 and stored in the type of the rows. The product of floats that reads them is then the one
the arithmetic describes, whichever kernel computes it.

A warp rounds one group. The largest magnitude is sought among the bits, where an infinity and a NaN are larger than all
numbers: such a group becomes NaN.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from moec.targets.cuda.kernels.launch import EARLY_ATTRIBUTES, WARP, blocks_for
from moec.targets.tvm.activation import at_least, at_most
from moec.targets.tvm.kernel import Kernel, why_not_stored

WARPS = 4
"""Warps of a block."""
_LARGEST = 127.0


@dataclasses.dataclass(frozen=True)
class Rounding:
    """Rows of ``inner`` elements of ``dtype``; ``group`` consecutive ones share a scale, 0 for all of a row."""

    inner: int
    group: int
    dtype: str = "float32"

    @property
    def size(self) -> int:
        """Elements of a group; the last one of a row may have fewer."""
        return self.group or self.inner

    @property
    def groups(self) -> int:
        """Groups of a row."""
        return -(-self.inner // self.size)


def _rounded(x: Any, scale: Any) -> Any:
    """A group without a scale is zero; a scale that is not finite makes NaN of every element."""
    steps = at_least(at_most(T.nearbyint(x / scale), _LARGEST), -_LARGEST)
    return T.Select(scale == T.float32(0), T.float32(0), steps * scale)


@T.inline
def _round_group(rounding, source, target, row, group, lane):
    steps = T.meta_var(-(-min(rounding.size, rounding.inner) // WARP))
    first: T.let = group * rounding.size + lane
    end: T.let = T.min((group + 1) * rounding.size, rounding.inner)
    largest = T.alloc_local((1,), "int32")
    largest[0] = 0
    for step in T.serial(steps):
        if first + step * WARP < end:
            magnitude: T.let = T.abs(T.cast(source[row, first + step * WARP], "float32"))
            largest[0] = T.max(largest[0], T.reinterpret("int32", magnitude))
    largest[0] = T.cuda.warp_reduce(largest[0], "max")
    scale: T.let = T.reinterpret("float32", largest[0]) / T.float32(_LARGEST)
    for step in T.serial(steps):
        if first + step * WARP < end:
            x: T.let = T.cast(source[row, first + step * WARP], "float32")
            target[row, first + step * WARP] = T.cast(_rounded(x, scale), rounding.dtype)


@T.inline
def _round(rounding, count, is_used, source, target):
    """Rows of the first ``count`` that ``is_used(row)``."""
    block = T.cta_id([blocks_for(count * rounding.groups, WARPS)])
    thread = T.thread_id([WARPS * WARP])
    index: T.let = block * WARPS + thread // WARP
    row: T.let = index // rounding.groups
    lane: T.let = thread % WARP
    if row < count:  # the one below may read memory that ends there  # noqa: SIM102
        if is_used(row):
            _round_group(rounding, source, target, T.cast(row, "int64"), index % rounding.groups, lane)


def round_rows(rounding: Rounding) -> tirx.PrimFunc:
    """``(rows[R, inner], out[R, inner])``; R may be 0."""

    @T.prim_func
    def kernel(rows_handle: T.handle, out_handle: T.handle):
        T.func_attr(EARLY_ATTRIBUTES)
        R = T.int32()
        rows = T.match_buffer(rows_handle, (R, rounding.inner), rounding.dtype)
        out = T.match_buffer(out_handle, (R, rounding.inner), rounding.dtype)
        T.device_entry()
        _round(rounding, R, lambda row: T.bool(True), rows, out)

    return kernel


def round_pairs(rounding: Rounding) -> tirx.PrimFunc:
    """``(experts[T, k], rows[Q, inner])``: the first T * k rows are rounded in their place, those of pairs without an
    expert too. Only the sizes of ``experts`` count."""

    @T.prim_func
    def kernel(experts_handle: T.handle, rows_handle: T.handle):
        T.func_attr(EARLY_ATTRIBUTES)
        tokens = T.int32()
        slots = T.int32()
        Q = T.int32()
        _experts = T.match_buffer(experts_handle, (tokens, slots), "int32")
        rows = T.match_buffer(rows_handle, (Q, rounding.inner), rounding.dtype)
        T.device_entry()
        _round(rounding, tokens * slots, lambda row: T.bool(True), rows, rows)

    return kernel


def round_blocks(rounding: Rounding, block_rows: int) -> tirx.PrimFunc:
    """``(experts[T, k], sorted_pairs[P], block_count[1], rows[Q, inner])``: of the blocks of :mod:`.dispatch`, the rows
    that are no padding are rounded in their place. Only the sizes of ``experts`` count."""

    @T.prim_func
    def kernel(experts_handle: T.handle, pairs_handle: T.handle, count_handle: T.handle, rows_handle: T.handle):
        T.func_attr(EARLY_ATTRIBUTES)
        tokens = T.int32()
        slots = T.int32()
        P = T.int32()
        Q = T.int32()
        _experts = T.match_buffer(experts_handle, (tokens, slots), "int32")
        sorted_pairs = T.match_buffer(pairs_handle, (P,), "int32")
        block_count = T.match_buffer(count_handle, (1,), "int32")
        rows = T.match_buffer(rows_handle, (Q, rounding.inner), rounding.dtype)
        T.device_entry()
        in_use = T.meta_var(lambda row: T.And(row < block_count[0] * block_rows, sorted_pairs[row] >= 0))
        _round(rounding, P, in_use, rows, rows)

    return kernel


ROUND = Kernel(
    "round_rows",
    "rows[r] = scale * round(rows[r] / scale), a scale for each group",
    round_rows,
    how=lambda rounding, _: "one warp per group of a row: largest magnitude / 127 is its scale; rows stay floats",
    why_not=lambda rounding, _: why_not_stored(rounding.dtype),
)
