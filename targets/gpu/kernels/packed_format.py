"""The packed format of quantised matrices in kernels: the meaning of the bytes, and the packing of the graph's numbers.

A matrix [columns, inner] is stored row by row, with consecutive inputs:

==========  =========================================  ================================================================
element     row                                        one number
==========  =========================================  ================================================================
``int8``    inner bytes                                (byte - zero point) * scale
``int4``    bytes of two, the even input in the lower  (4 bits - zero point) * scale
            half
4-bit       as int4                                    the OCP code e2m1 of the 4 bits, times scale
floats
``iq4``     as int4                                    the number at the place of the 4 bits in a table, times scale
``int2``    bytes of four, the first input in the      (2 bits - zero point) * scale
            lowest bits
``int3``    three bytes for eight: the lower two bits  (3 bits - zero point) * scale
            as int2, then the third ones, the first
            input's lowest
8-bit       inner bytes                                the OCP code e4m3 of the byte, times scale
floats
==========  =========================================  ================================================================

Integers are stored unsigned. The zero point of symmetric ones is the middle of their range, a constant in the code;
others have a table of zero points. Scales and zero points are [columns, groups], where a group is ``group`` consecutive
inputs, or all of them. Scales of nvfp4 are codes of e4m3 times a float32 for the column: a row is that float, then the
codes, then zeros up to a multiple of 4 bytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from tvm.script import tirx as T

from moec.ir.weights.encode import Table, codes_of
from moec.ir.weights.stored import WeightRun
from moec.targets.gpu.kernels.instructions import pick_bytes, set_and_or
from moec.targets.tvm.kernels.group_scales import power_of
from moec.targets.tvm.kernels.small_floats import E2M1, E4M3
from moec.targets.tvm.kernels.stored_format import StoredFormat

_PACKED_BITS = (2, 3, 4)
"""The numbers of bits that are packed; other integers take a byte."""
_SCALE_TYPES = ("float32", "float16", "bfloat16", "float8_e8m0fnu", "float8_e4m3fn")
FACTOR_BYTES = 4
"""Bytes of the float in front of the scales of a column in nvfp4."""


@dataclasses.dataclass(frozen=True)
class PackedFormat(StoredFormat):
    """A quantised format with rows of bytes, see the module. Integers without a row there are stored as int8."""

    @classmethod
    def of(cls, run: WeightRun) -> PackedFormat:
        stored = super().of(run)
        if run.format.elements.has_factors:
            stored = dataclasses.replace(stored, scale="float8_e4m3fn")
        in_bytes = stored.is_whole and stored.bits not in _PACKED_BITS
        return dataclasses.replace(stored, element="int8") if in_bytes else stored

    def row_bytes(self, inner: int) -> int:
        return -(-inner // 8) * 3 if self.bits == 3 else -(-inner * self.bits // 8)

    @property
    def has_factors(self) -> bool:
        """Whether scales are codes, times a float of their column."""
        return self.scale == "float8_e4m3fn"

    def scale_row(self, inner: int) -> int:
        """Elements of a column's row of scales."""
        groups = self.groups(inner)
        return FACTOR_BYTES + -(-groups // FACTOR_BYTES) * FACTOR_BYTES if self.has_factors else groups

    def why_not(self, together: int = 1) -> str | None:
        """The reason why a kernel that reads ``together`` inputs at once, with one scale, cannot read this format, or
        None."""
        if self.scale not in _SCALE_TYPES:
            return f"scales of type {self.scale}; the kernel takes {', '.join(_SCALE_TYPES)}"
        if self.group % together:
            return f"groups of {self.group} inputs; the kernel reads {together} with one scale"
        return None

    def code(self, read: Callable[[Any], Any], k: Any) -> Any:
        """The code of input ``k``, int32. ``read(i)``: byte i of the row, or of a chunk of eight inputs if ``k`` is
        counted within that chunk."""
        if self.bits == 3:
            low, high = (T.cast(read(k // 8 * 3 + byte), "int32") for byte in (k % 8 // 4, 2))
            return ((low >> (k % 4 * 2)) & 3) | (((high >> (k % 8)) & 1) << 2)
        wide = T.cast(read(k * self.bits // 8), "int32")
        return wide if self.bits == 8 else (wide >> (k % (8 // self.bits) * self.bits)) & ((1 << self.bits) - 1)

    def number(self, code: Any, zero: Any) -> Any:
        """The number of a code, float32, without scale; ``zero``: its zero point. All such numbers are exact in float16
        and bfloat16."""
        if self.is_e4m3:
            return _e4m3(code)
        if self.is_e2m1:
            return E2M1.number_of(code)
        return T.cast((self._looked_up(code) if self.is_looked_up else code) - zero, "float32")

    def _looked_up(self, code: Any) -> Any:
        """The byte of :attr:`table` at the place of a code, int32."""
        first, second, third, fourth = map(T.uint32, self.table)
        word = T.Select(code < 8, T.Select(code < 4, first, second), T.Select(code < 12, third, fourth))
        return T.cast((word >> T.cast(code % 4 * 8, "uint32")) & T.uint32(255), "int32")

    @property
    def table(self) -> tuple[int, ...]:
        """Words with a byte for each code, its number plus :attr:`middle`; empty where codes are the numbers."""
        entries = bytes(number + self.middle for number in self.numbers)
        return tuple(int.from_bytes(entries[place : place + 4], "little") for place in range(0, len(entries), 4))

    @property
    def has_words(self) -> bool:
        """Whether :func:`decode_word` can decode this format."""
        return self.bits == 4

    @property
    def word_factor(self) -> float:
        """The factor by which the numbers of :func:`decode_word` have to be multiplied."""
        return 2.0**14 if self.is_e2m1 else 1.0

    def zero(self, zero_points: Any, position: list[Any]) -> Any:
        """The zero point of a group, int32."""
        if self.zero_points:
            return T.cast(zero_points[tuple(position)], "int32")
        return T.int32(self.middle)

    @property
    def middle(self) -> int:
        """The code, or entry of :attr:`table`, that means zero where no table of zero points says otherwise."""
        if self.is_looked_up:
            return -self.numbers[0]
        return 1 << (self.bits - 1) if self.is_whole else 0

    def scale_value(self, stored: Any) -> Any:
        """A scale as float32, from its stored value; in nvfp4 without the factor."""
        if self.has_factors:
            return _e4m3(T.cast(stored, "int32"))
        if self.scale != "float8_e8m0fnu":
            return T.cast(stored, "float32")
        return power_of(T.cast(stored, "int32"))


def _e4m3(code: Any) -> Any:
    """The number of a code (int32), float32."""
    return T.Select(code & 127 == 127, T.float32(float("nan")), E4M3.number_of(code))


def _power_of_two(exponent: Any) -> Any:
    """2**exponent, float32; the exponent may be the variable of a loop."""
    return T.reinterpret("float32", (127 + exponent) << 23)


@T.inline
def _decode_int4(word, zero, numbers, first):
    """Decode eight 4-bit integers with two instructions each; a conversion would take four.

    A code at bit p stays in place and becomes part of the fraction of 2**23, whose lowest bit is worth 1. One
    instruction makes the float 2**23 + 2**p * code, another one subtracts and scales it to the number, exactly. Codes
    above bit 20 would overlap the exponent, so they are shifted down first. The idea is that of Kim et al., "Who Says
    Elephants Can't Run" (2022), who use float16.
    """
    bits = T.alloc_local((1,), "uint32")
    for k in T.unroll(8):
        shift = T.meta_var(T.Select(k < 5, 0, 12))
        place = T.meta_var(4 * k - shift)
        mask = T.meta_var(T.cast(15 << place, "uint32"))
        set_and_or(bits[0], word >> T.cast(shift, "uint32"), mask, T.uint32(0x4B000000))
        middle = T.meta_var(_power_of_two(23 - place) + zero)
        numbers[first + k] = T.reinterpret("float32", bits[0]) * _power_of_two(-place) - middle


@T.inline
def _decode_e2m1(word, numbers, first):
    """Decode eight e2m1 numbers, two at once that are 16 bits apart. Sign, exponent and fraction are shifted to their
    places in float16. The difference of the exponents' biases, 15 and 1, is left to ``word_factor``."""
    halves = T.alloc_local((2,), "float16")
    both = T.decl_buffer((1,), "uint32", data=halves.data)
    for k in T.unroll(4):
        signs: T.let = word << T.cast(12 - 4 * k, "uint32")
        others: T.let = T.Select(k < 3, word << T.cast(T.max(9 - 4 * k, 0), "uint32"), word >> T.uint32(3))
        set_and_or(both[0], signs, T.uint32(0x80008000), others & T.uint32(0x0E000E00))
        for v in T.unroll(2):
            numbers[first + k + 4 * v] = T.cast(halves[v], "float32")


@T.inline
def _decode_looked_up(table, word, zero, numbers, first):
    """Decode eight codes by permutations of bytes, each of which selects four of eight: from the lower half of the
    table, from the upper half, and from these two. A byte then becomes the lowest one of 2**23, as in
    :func:`_decode_int4`."""
    for half in T.unroll(2):
        codes: T.let = word >> T.uint32(16 * half)
        places: T.let = codes & T.uint32(0x7777)
        lower: T.let = pick_bytes(T.uint32(table[0]), T.uint32(table[1]), places)
        upper: T.let = pick_bytes(T.uint32(table[2]), T.uint32(table[3]), places)
        entries: T.let = pick_bytes(lower, upper, ((codes & T.uint32(0x8888)) >> T.uint32(1)) | T.uint32(0x3210))
        for k in T.unroll(4):
            bits: T.let = pick_bytes(entries, T.uint32(0x4B000000), T.cast(0x7440 + k, "uint32"))
            numbers[first + half * 4 + k] = T.reinterpret("float32", bits) - (T.float32(2.0**23) + zero)


@T.inline
def decode_word(stored, word, zero, numbers, first):
    """Decode the eight 4-bit codes of a ``word`` (uint32) into ``numbers``, float32, from ``first`` on.

    Integers, and entries of a table, have ``zero`` (float32) subtracted. The results are without scale, and have to be
    multiplied by :attr:`PackedFormat.word_factor`.
    """
    if stored.is_e2m1:
        _decode_e2m1(word, numbers, first)
    elif stored.is_looked_up:
        _decode_looked_up(stored.table, word, zero, numbers, first)
    else:
        _decode_int4(word, zero, numbers, first)


def pack(stored: PackedFormat, table: Table, array: np.ndarray) -> np.ndarray:
    """A table of a matrix in the packed format. Data [columns, inner] becomes uint8 [columns, row bytes]; scales stay
    [columns, groups]; zero points [columns, groups] become uint8."""
    if table == "data":
        return _bytes(stored, _codes(stored, array))
    if table == "zero_point":
        return array.astype(np.uint8)
    scales = np.ascontiguousarray(array)
    return scales.view(np.uint8) if stored.scale_storage == "uint8" else scales


def scale_rows(stored: PackedFormat, codes: np.ndarray, factors: np.ndarray, inner: int) -> np.ndarray:
    """Rows of scales in nvfp4, uint8 [columns, row], from codes [columns, groups] and factors [columns, 1]."""
    rows = np.zeros((len(codes), stored.scale_row(inner)), np.uint8)
    rows[:, :FACTOR_BYTES] = np.ascontiguousarray(factors, np.float32).view(np.uint8)
    rows[:, FACTOR_BYTES : FACTOR_BYTES + codes.shape[1]] = np.ascontiguousarray(codes).view(np.uint8)
    return rows


def _codes(stored: PackedFormat, data: np.ndarray) -> np.ndarray:
    """The codes of all numbers, [columns, inner], one unsigned byte each."""
    if not stored.is_whole:
        return np.ascontiguousarray(data).view(np.uint8) & ((1 << stored.bits) - 1)
    if stored.is_looked_up:
        return codes_of(data, stored.element)
    if stored.zero_points:
        return data.astype(np.uint8)
    return (data.astype(np.int16) + stored.middle).astype(np.uint8)


def _bytes(stored: PackedFormat, codes: np.ndarray) -> np.ndarray:
    if stored.bits == 8:
        return codes
    if stored.bits == 4:
        even = np.pad(codes, ((0, 0), (0, codes.shape[1] % 2)))
        return even[:, 0::2] | (even[:, 1::2] << 4)
    eights = np.pad(codes, ((0, 0), (0, -codes.shape[1] % 8))).reshape(len(codes), -1, 8)
    low = _joined((eights & 3).reshape(len(codes), -1, 4), 2)
    if stored.bits == 2:
        return low[:, : stored.row_bytes(codes.shape[1])]
    thirds = _joined(eights >> 2, 1)
    return np.concatenate([low.reshape(len(codes), -1, 2), thirds[..., None]], axis=2).reshape(len(codes), -1)


def _joined(numbers: np.ndarray, bits: int) -> np.ndarray:
    """The numbers [..., count], of ``bits`` bits each, joined to bytes [...]; the first number is in the lowest
    bits."""
    shifts = bits * np.arange(numbers.shape[-1], dtype=np.uint8)
    return np.bitwise_or.reduce(numbers << shifts, axis=-1)
