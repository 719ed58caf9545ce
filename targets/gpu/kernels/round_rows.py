"""Rounding of rows in groups, as an arithmetic asks for it, see :class:`~moec.ir.dialect.ProductSpec`.

Every group of a row becomes ``scale * q`` with a ``scale`` that follows from its largest magnitude, and ``q = round
half to even(x / scale)``, computed in float32. The result is stored in one of two ways. As floats of the rows' type,
any product of floats computes the arithmetic. Packed (:mod:`.fp8_rows`, :mod:`.block_scaled_rows`), tensor cores
multiply the codes.

A warp rounds one group, or a whole row if its scales have a factor in common. It compares magnitudes by their bits, in
which infinities and NaNs are larger than all numbers; a group with one of these becomes NaN.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from moec.targets.gpu.kernels.block_scaled_rows import BLOCK_SCALINGS, BlockScaling, pack_part, parts_of_row
from moec.targets.gpu.kernels.fp8_rows import GROUP, place_of_scale, row_bytes, words_of
from moec.targets.gpu.kernels.instructions import reduce_lanes
from moec.targets.gpu.kernels.largest_magnitude import find_largest
from moec.targets.gpu.kernels.launch import EARLY_ATTRIBUTES, WARP, blocks_for
from moec.targets.tvm.kernels.activation import at_least, at_most
from moec.targets.tvm.kernels.group_scales import ELEMENTS, POWERS, factor_of, has_factor, is_finite, scale_of
from moec.targets.tvm.kernels.kernel import Kernel, why_not_stored
from moec.targets.tvm.kernels.small_floats import E4M3

WARPS = 4
"""Warps of a block of threads."""
_LARGEST_INT8 = 127.0
_TOGETHER = GROUP // WARP
"""Neighbouring numbers that a lane packs into the bytes of one word."""


@dataclasses.dataclass(frozen=True)
class RowRounding:
    """The rounding of rows of ``inner`` elements of ``dtype``. ``group``: consecutive elements that share a scale, 0
    for a whole row; ``packed``: whether small floats are stored as codes with scales instead of floats; ``why_floats``:
    the reason if they are not, for reports."""

    inner: int
    group: int
    dtype: str = "float32"
    arithmetic: str = "int8"
    packed: bool = False
    why_floats: str = ""

    @property
    def out_type(self) -> tuple[int, str]:
        """The number of elements of a rounded row in memory, and their type."""
        if not self.packed:
            return (self.inner, self.dtype)
        return (row_bytes(self.inner) if self.scaling is None else self.scaling.row_bytes(self.inner), "uint8")

    @property
    def scaling(self) -> BlockScaling | None:
        """The way of storing packed rows that have block scales; None for other rows."""
        return BLOCK_SCALINGS.get(self.arithmetic) if self.packed else None

    @property
    def size(self) -> int:
        """Elements of a group; the last group of a row may have fewer."""
        return min(self.group or self.inner, self.inner)

    @property
    def groups(self) -> int:
        """Groups of a row."""
        return -(-self.inner // self.size)

    @property
    def parts(self) -> int:
        """Parts of a row, each of which a warp rounds."""
        if has_factor(self.arithmetic):
            return 1
        return self.groups if self.scaling is None else parts_of_row(self.inner)

    @property
    def largest(self) -> float:
        """The largest q."""
        return _LARGEST_INT8 if self.arithmetic == "int8" else ELEMENTS[self.arithmetic].largest


def _step(rounding: RowRounding, x: Any, scale: Any) -> Any:
    """``x / scale``, clamped to the largest q. The scale has to be finite and not 0, or the result is meaningless."""
    return at_least(at_most(x / scale, rounding.largest), -rounding.largest)


def _rounded(rounding: RowRounding, x: Any, scale: Any) -> Any:
    """The rounded value of ``x``. It is zero if the scale is zero, and NaN if the scale is not finite."""
    step = _step(rounding, x, scale)
    element = ELEMENTS.get(rounding.arithmetic)
    number = T.nearbyint(step) if element is None else element.number_of(element.code_of(step))
    return T.Select(scale == T.float32(0), T.float32(0), number * scale)


@T.inline
def _round_group(rounding, source, target, row, group, lane, factor):
    steps = T.meta_var(-(-rounding.size // WARP))
    first: T.let = group * rounding.size + lane
    end: T.let = T.min((group + 1) * rounding.size, rounding.inner)
    largest = T.alloc_local((1,), "int32")
    find_largest(source, row, first, end, steps, largest)
    scale: T.let = scale_of(rounding.arithmetic, largest[0], factor)
    for step in T.serial(steps):
        if first + step * WARP < end:
            x: T.let = T.cast(source[row, first + step * WARP], "float32")
            target[row, first + step * WARP] = T.cast(_rounded(rounding, x, scale), rounding.dtype)


@T.inline
def _round_row(rounding, source, target, row, lane):
    """Round all groups of a row, whose scales have a factor in common."""
    largest_of_row = T.alloc_local((1,), "int32")
    find_largest(source, row, lane, rounding.inner, -(-rounding.inner // WARP), largest_of_row)
    factor: T.let = factor_of(largest_of_row[0])
    for group in T.serial(rounding.groups):
        _round_group(rounding, source, target, row, group, lane, factor)


@T.inline
def _pack_group(rounding, source, target, row, group, lane):
    """Round a group and store it packed, four codes per lane. The codes are zero if the scale is zero or not finite."""
    stored = T.alloc_local((_TOGETHER,), rounding.dtype)
    largest = T.alloc_local((1,), "int32")
    word = T.alloc_local((1,), "int32")
    for v in T.vectorized(_TOGETHER):
        stored[v] = source[row, group * GROUP + lane * _TOGETHER + v]
    largest[0] = 0
    for v in T.unroll(_TOGETHER):
        largest[0] = T.max(largest[0], T.reinterpret("int32", T.abs(T.cast(stored[v], "float32"))))
    largest[0] = reduce_lanes(largest[0], "max")
    scale: T.let = scale_of(rounding.arithmetic, largest[0])
    usable: T.let = T.And(scale > T.float32(0), is_finite(largest[0]))
    word[0] = 0
    for v in T.unroll(_TOGETHER):
        step: T.let = _step(rounding, T.cast(stored[v], "float32"), T.Select(usable, scale, T.float32(1)))
        word[0] = word[0] | (E4M3.code_of(T.Select(usable, step, T.float32(0))) << (8 * v))
    words = T.meta_var(words_of(target, "int32"))
    scales = T.meta_var(words_of(target, "float32"))
    words[row, group * WARP + lane] = word[0]
    if lane == 0:
        scales[row, place_of_scale(rounding.inner, group)] = scale


@T.inline
def _round(rounding, count, is_used, source, target):
    """Round those of the first ``count`` rows for which ``is_used(row)`` holds."""
    block = T.cta_id([blocks_for(count * rounding.parts, WARPS)])
    thread = T.thread_id([WARPS * WARP])
    index: T.let = block * WARPS + thread // WARP
    row: T.let = index // rounding.parts
    lane: T.let = thread % WARP
    if row < count:  # tested first, because the next test may read memory that ends there  # noqa: SIM102
        if is_used(row):
            if rounding.scaling is not None:
                pack_part(rounding, source, target, T.cast(row, "int64"), index % rounding.parts, lane)
            elif rounding.packed:
                _pack_group(rounding, source, target, T.cast(row, "int64"), index % rounding.parts, lane)
            elif has_factor(rounding.arithmetic):
                _round_row(rounding, source, target, T.cast(row, "int64"), lane)
            else:
                _round_group(rounding, source, target, T.cast(row, "int64"), index % rounding.parts, lane, None)


def round_rows(rounding: RowRounding) -> tirx.PrimFunc:
    """The kernel ``(rows[R, inner], out[R, ...])``, which rounds all rows. Rows of ``out`` have the rounding's
    ``out_type``. R may be 0."""
    width, out_dtype = rounding.out_type

    @T.prim_func
    def kernel(rows_handle: T.handle, out_handle: T.handle):
        T.func_attr(EARLY_ATTRIBUTES)
        R = T.int32()
        rows = T.match_buffer(rows_handle, (R, rounding.inner), rounding.dtype)
        out = T.match_buffer(out_handle, (R, width), out_dtype)
        T.device_entry()
        _round(rounding, R, lambda row: T.bool(True), rows, out)

    return kernel


def round_pairs(rounding: RowRounding) -> tirx.PrimFunc:
    """The kernel ``(experts[T, k], rows[Q, inner], out[Q, ...])``, which rounds the first T * k rows, including those
    of pairs without an expert. Of ``experts`` only the sizes are used."""
    width, out_dtype = rounding.out_type

    @T.prim_func
    def kernel(experts_handle: T.handle, rows_handle: T.handle, out_handle: T.handle):
        T.func_attr(EARLY_ATTRIBUTES)
        tokens = T.int32()
        slots = T.int32()
        Q = T.int32()
        _experts = T.match_buffer(experts_handle, (tokens, slots), "int32")
        rows = T.match_buffer(rows_handle, (Q, rounding.inner), rounding.dtype)
        out = T.match_buffer(out_handle, (Q, width), out_dtype)
        T.device_entry()
        _round(rounding, tokens * slots, lambda row: T.bool(True), rows, out)

    return kernel


def round_blocks(rounding: RowRounding, block_rows: int) -> tirx.PrimFunc:
    """The kernel ``(experts[T, k], sorted_pairs[P], block_count[1], rows[Q, inner], out[Q, ...])``, which rounds the
    rows of the blocks of :mod:`.dispatch`, except padding. Of ``experts`` only the sizes are used."""
    width, out_dtype = rounding.out_type

    @T.prim_func
    def kernel(
        experts_handle: T.handle,
        pairs_handle: T.handle,
        count_handle: T.handle,
        rows_handle: T.handle,
        out_handle: T.handle,
    ):
        T.func_attr(EARLY_ATTRIBUTES)
        tokens = T.int32()
        slots = T.int32()
        P = T.int32()
        Q = T.int32()
        _experts = T.match_buffer(experts_handle, (tokens, slots), "int32")
        sorted_pairs = T.match_buffer(pairs_handle, (P,), "int32")
        block_count = T.match_buffer(count_handle, (1,), "int32")
        rows = T.match_buffer(rows_handle, (Q, rounding.inner), rounding.dtype)
        out = T.match_buffer(out_handle, (Q, width), out_dtype)
        T.device_entry()
        in_use = T.meta_var(lambda row: T.And(row < block_count[0] * block_rows, sorted_pairs[row] >= 0))
        _round(rounding, P, in_use, rows, out)

    return kernel


def _how(rounding: RowRounding) -> str:
    kept = "bytes, scales behind them" if rounding.packed else "floats"
    kept += f" ({rounding.why_floats})" if rounding.why_floats else ""
    whole = (
        "row, whose largest magnitude gives a factor of all scales"
        if has_factor(rounding.arithmetic)
        else "group of a row"
    )
    ceiled = ", as a power of two," if rounding.arithmetic in POWERS else ""
    return f"one warp per {whole}: largest magnitude / {rounding.largest:g}{ceiled} is its scale; kept as {kept}"


ROUND = Kernel(
    "round_rows",
    "rows[r] = scale * round(rows[r] / scale), a scale for each group",
    round_rows,
    how=lambda rounding, _: _how(rounding),
    why_not=lambda rounding, _: why_not_stored(rounding.dtype),
)
