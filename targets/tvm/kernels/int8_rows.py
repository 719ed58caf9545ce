"""Rows of int8 with a scale each: the numbers that ``moec.RoundRows`` rounds to, and their layout in memory.

A page of P rows of N numbers takes P * (N + 2) bytes: the integers row by row, then the P scales as bfloat16, lower
byte first.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from moec.common.specs import ROW_SCALE_BYTES

INT8_ROWS = "int8"
"""Element type of pages with such rows."""
_LARGEST = 127.0
_INFINITY, _NAN, _SMALLEST_NORMAL = 0x7F800000, 0x7FC00000, 0x00800000


def rows_in(page: Any, row: int) -> Any:
    """Number of rows of ``row`` numbers in a page of ``page`` bytes."""
    return tirx.floordiv(page, row + ROW_SCALE_BYTES)


def magnitude(number: Any) -> Any:
    """Bits of the absolute value of a float32, as int32. They are ordered as the values are, with NaN above all."""
    return T.reinterpret("int32", number) & 0x7FFFFFFF


def scale_of(largest: Any) -> Any:
    """The scale of a row whose largest :func:`magnitude` is ``largest``, as float32."""
    share = T.reinterpret("float32", largest) / T.float32(_LARGEST)
    bits = T.max(T.reinterpret("int32", share), T.int32(_SMALLEST_NORMAL))
    bits = T.Select(largest < _INFINITY, bits, T.int32(_NAN))
    return T.cast(T.cast(T.reinterpret("float32", bits), "bfloat16"), "float32")


def whole_number(number: Any, scale: Any) -> Any:
    """The integer, as float32, that times the scale is nearest to ``number``; in [-127, 127], and 127 for a NaN."""
    nearest = T.nearbyint(number / scale)
    below = T.Select(nearest < T.float32(_LARGEST), nearest, T.float32(_LARGEST))
    return T.Select(below > T.float32(-_LARGEST), below, T.float32(-_LARGEST))


def scale_at(page: Any, row: int, number: Any) -> Any:
    """Byte offset, in a page of ``page`` bytes, of the scale of its row ``number``."""
    return rows_in(page, row) * row + ROW_SCALE_BYTES * number


def bytes_of(scale: Any) -> tuple[Any, Any]:
    """The two bytes of a scale's bfloat16, lower first, as int8."""
    upper = T.reinterpret("int32", scale) >> 16
    return T.cast(upper, "int8"), T.cast(upper >> 8, "int8")


def scale_from(low: Any, high: Any) -> Any:
    """A scale, as float32, from the two bytes that :func:`bytes_of` makes."""
    upper = (T.cast(high, "int32") & 0xFF) << 24
    return T.reinterpret("float32", upper | (T.cast(low, "int32") & 0xFF) << 16)


def scales_from(pairs: Any, lanes: int) -> Any:
    """``lanes`` scales, as float32, from a vector of twice as many int8."""
    return T.cast(T.reinterpret(f"bfloat16x{lanes}", pairs), f"float32x{lanes}")
