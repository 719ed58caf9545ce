"""Rows whose numbers and scales tensor cores multiply together ("block scales"): their layout in memory, and how they
are written and read.

A row of ``inner`` inputs, a multiple of :data:`SPAN`, is its codes, then a byte for the scale of each group, then, in
nvfp4, the float32 that all scales are multiplied by, then padding up to a multiple of 16 bytes, the size of copies:

=========  ==========================================================  ==============================  ===============
name       codes of a row                                              scale of a group                matrix
=========  ==========================================================  ==============================  ===============
``mxfp8``  e4m3, a byte each: of every 32 inputs the even ones, then   exponent of 2, for 32 inputs    ``mxfp4``
           the odd ones
``mxfp4``  e2m1, two in a byte, the even input in the lower half       exponent of 2, for 32 inputs    ``mxfp4``
``nvfp4``  as mxfp4                                                    e4m3, for 16 inputs             ``nvfp4``
=========  ==========================================================  ==============================  ===============

The order of mxfp8 is that in which a word with eight numbers of 4 bits of the matrix falls apart into bytes: the lower
halves are even inputs.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from tvm.script import tirx as T

from moec.targets.gpu.constants import WARP
from moec.targets.gpu.kernels.fp8_rows import decode_pairs, words_of
from moec.targets.gpu.kernels.instructions import reduce_lanes
from moec.targets.gpu.kernels.largest_magnitude import find_largest
from moec.targets.gpu.kernels.launch import read_at_once
from moec.targets.gpu.kernels.packed_format import PackedFormat, decode_word
from moec.targets.tvm.kernels.group_scales import (
    ELEMENTS,
    code_of_scale,
    exponent_of,
    factor_of,
    is_finite,
    power_of,
)
from moec.targets.tvm.kernels.small_floats import E4M3, SmallFloat

SPAN = 128
"""Inputs of a k-tile, of which a row has a multiple."""
_PER_LANE = 8
"""Neighbouring inputs that a lane rounds together."""
_ALIGNMENT = 16
_FACTOR_BYTES = 4
_NO_NUMBER = 255
"""The exponent that stands for no number."""
_E2M1_ROWS = PackedFormat("nvfp4", 16, "float8_e4m3fn")
"""A format with the numbers of rows in e2m1, whose words it decodes."""


@dataclasses.dataclass(frozen=True)
class BlockScaling:
    """A way to store rows with block scales. ``arithmetic``: that of :class:`~moec.ir.dialect.ProductSpec`, and its
    name; ``bits``: of a number; ``group``: inputs that share a scale; ``matrix``: the format of matrices that rows are
    multiplied with; ``has_factors``: whether scales are codes of e4m3 times a float32 of the row, instead of exponents
    of 2."""

    arithmetic: str
    bits: int
    group: int
    matrix: str
    has_factors: bool = False

    @property
    def element(self) -> SmallFloat:
        return ELEMENTS[self.arithmetic]

    def code_bytes(self, inner: int) -> int:
        return inner * self.bits // 8

    def row_bytes(self, inner: int) -> int:
        size = self.code_bytes(inner) + inner // self.group + (_FACTOR_BYTES if self.has_factors else 0)
        return -(-size // _ALIGNMENT) * _ALIGNMENT

    @property
    def scale_words(self) -> int:
        """Words of 4 bytes with the scales of a k-tile of a row, or of a column of the matrix."""
        return SPAN // self.group // 4

    def place_of_scales(self, inner: int) -> int:
        """The index of the first scales among the words of a row."""
        return self.code_bytes(inner) // 4

    def place_of_factor(self, inner: int) -> int:
        """The index of the factor among the words of a row."""
        return self.place_of_scales(inner) + inner // self.group // 4

    def why_not(self, inner: int, group: int) -> str | None:
        """The reason why rows of ``inner`` inputs, of which ``group`` share a scale, cannot be stored, or None."""
        if group != self.group:
            return f"groups of {group or inner} activations; expected {self.group}"
        return f"{inner} inputs are no multiple of {SPAN}" if inner % SPAN else None


BLOCK_SCALINGS = {
    scaling.arithmetic: scaling
    for scaling in (
        BlockScaling("mxfp8", 8, 32, "mxfp4"),
        BlockScaling("mxfp4", 4, 32, "mxfp4"),
        BlockScaling("nvfp4", 4, 16, "nvfp4", has_factors=True),
    )
}
"""The ways by arithmetic."""


def _scale_code(scaling: BlockScaling, bits: Any, factor: Any) -> Any:
    """The code of a group's scale, int32, from the bits of its largest magnitude."""
    if scaling.has_factors:
        return code_of_scale(bits, factor)
    return T.Select(is_finite(bits), exponent_of(bits, scaling.element), T.int32(_NO_NUMBER))


def _share(scaling: BlockScaling, x: Any, code: Any, factor: Any) -> Any:
    """``x`` divided by a scale; 0 if there is none to divide by."""
    if scaling.has_factors:
        scale = E4M3.number_of(code) * factor
        usable = T.And(scale > T.float32(0), is_finite(T.reinterpret("int32", scale)))
        return T.Select(usable, x / T.Select(usable, scale, T.float32(1)), T.float32(0))
    usable = code != T.int32(_NO_NUMBER)
    return T.Select(usable, x * power_of(T.int32(254) - T.Select(usable, code, T.int32(0))), T.float32(0))


@T.inline
def _pack_span(rounding, scaling, source, target, row, first, lane, factor):
    """Round and store the eight inputs of this lane, from ``first`` on, of which a row may have none."""
    stored = T.alloc_local((_PER_LANE,), rounding.dtype)
    largest = T.alloc_local((1,), "int32")
    packed = T.alloc_local((2,), "int32")
    largest[0] = 0
    for v in T.unroll(_PER_LANE):
        stored[v] = T.cast(T.float32(0), rounding.dtype)
    vector = T.meta_var(read_at_once(_PER_LANE, rounding.dtype))
    if first < rounding.inner:
        for load in T.unroll(_PER_LANE // vector):
            for v in T.vectorized(vector):
                stored[load * vector + v] = source[row, first + load * vector + v]
    for v in T.unroll(_PER_LANE):
        largest[0] = T.max(largest[0], T.reinterpret("int32", T.abs(T.cast(stored[v], "float32"))))
    largest[0] = reduce_lanes(largest[0], "max", scaling.group // _PER_LANE)
    code: T.let = _scale_code(scaling, largest[0], factor)
    packed[0] = 0
    packed[1] = 0
    for v in T.unroll(_PER_LANE):
        share: T.let = _share(scaling, T.cast(stored[v], "float32"), code, factor)
        bounded: T.let = T.max(T.min(share, T.float32(scaling.element.largest)), T.float32(-scaling.element.largest))
        if scaling.bits == 8:
            packed[v % 2] = packed[v % 2] | (scaling.element.code_of(bounded) << (v // 2 * 8))
        else:
            packed[0] = packed[0] | (scaling.element.code_of(bounded) << (v * 4))
    words = T.meta_var(words_of(target, "int32"))
    if first < rounding.inner:
        if scaling.bits == 8:
            for half in T.unroll(2):
                words[row, first // scaling.group * 8 + half * 4 + first % scaling.group // _PER_LANE] = packed[half]
        else:
            words[row, first // _PER_LANE] = packed[0]
        if lane % (scaling.group // _PER_LANE) == 0:
            target[row, scaling.code_bytes(rounding.inner) + first // scaling.group] = T.cast(code, "uint8")


@T.inline
def pack_part(rounding, source, target, row, part, lane):
    """Round and store a part of a row: as many inputs as a warp takes at once, or all if scales have a factor."""
    scaling = T.meta_var(BLOCK_SCALINGS[rounding.arithmetic])
    at_once = T.meta_var(WARP * _PER_LANE)
    if scaling.has_factors:
        largest_of_row = T.alloc_local((1,), "int32")
        find_largest(source, row, lane, rounding.inner, -(-rounding.inner // WARP), largest_of_row)
        factor: T.let = factor_of(largest_of_row[0])
        for step in T.serial(-(-rounding.inner // at_once)):
            _pack_span(rounding, scaling, source, target, row, step * at_once + lane * _PER_LANE, lane, factor)
        factors = T.meta_var(words_of(target, "float32"))
        if lane == 0:
            factors[row, scaling.place_of_factor(rounding.inner)] = factor
    else:
        _pack_span(rounding, scaling, source, target, row, part * at_once + lane * _PER_LANE, lane, None)


def parts_of_row(inner: int) -> int:
    """Parts of a row that a warp rounds one by one, unless scales have a factor."""
    return -(-inner // (WARP * _PER_LANE))


@T.inline
def load_inputs(scaling, inner, rows, row, first, values, r):
    """Load inputs of a row from ``first`` on, which share a scale, into ``values[r]``, as float32."""
    count = T.meta_var(values.shape[1])
    words = T.meta_var(words_of(rows, "uint32"))
    numbers = T.alloc_local((count,), "float32")
    scale = T.local_scalar("float32")
    stored: T.let = T.cast(rows[row, scaling.code_bytes(inner) + first // scaling.group], "int32")
    if scaling.has_factors:
        factors = T.meta_var(words_of(rows, "float32"))
        scale = E4M3.number_of(stored) * factors[row, scaling.place_of_factor(inner)]
    else:
        scale = T.Select(stored == _NO_NUMBER, T.float32(float("nan")), power_of(stored))
    if scaling.bits == 8:
        halves = T.alloc_local((2, count // 8), "uint32")
        pairs = T.decl_buffer((2, count // 4), "uint16", data=halves.data)
        place: T.let = first // scaling.group * scaling.group + first % scaling.group // 2
        for half in T.unroll(2):
            for v in T.vectorized(count // 8):
                halves[half, v] = words[row, (place + half * (scaling.group // 2)) // 4 + v]
        parts = T.alloc_local((count // 2,), "float32")
        for half in T.unroll(2):
            decode_pairs(pairs, half, parts)
            for v in T.unroll(count // 2):
                numbers[2 * v + half] = parts[v]
    else:
        for word in T.unroll(count // 8):
            decode_word(_E2M1_ROWS, words[row, first // 8 + word], T.float32(0), numbers, word * 8)
        scale = scale * T.float32(_E2M1_ROWS.word_factor)
    for v in T.unroll(count):
        values[r, v] = numbers[v] * scale
