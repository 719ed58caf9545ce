"""Rows rounded to small floats as their arithmetic asks for, see :class:`~moec.ir.dialect.ProductSpec`, and kept as
floats.

A processor multiplies no floats of 8 or 4 bits: the product of floats that reads these rows is the one the arithmetic
describes. The largest magnitude of a group is sought among the bits, as :mod:`.quantize_rows` does.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from moec.targets.cpu.kernels.emit import Parameter, emit_kernel, loop, named, parallel_rows
from moec.targets.tvm.kernels.group_scales import ELEMENTS, factor_of, has_factor, is_finite, scale_of
from moec.targets.tvm.kernels.kernel import Kernel, in_storage, why_not_stored

_MAGNITUDE_BITS = 0x7FFFFFFF


@dataclasses.dataclass(frozen=True)
class RoundedRows:
    """Rows of ``width`` elements of ``dtype``, ``stride`` apart; what lies between is copied. ``group`` consecutive
    elements share a scale, 0 for all of a row."""

    width: int
    stride: int
    group: int
    dtype: str = "float32"
    arithmetic: str = "fp8"


def round_rows(problem: RoundedRows) -> tirx.PrimFunc:
    """``(x[M, stride], rows[M, stride])``."""
    shape = ("M", problem.stride)
    parameters = [Parameter("x", shape, problem.dtype), Parameter("rows", shape, problem.dtype)]
    size = min(problem.group or problem.width, problem.width)
    whole, rest = divmod(problem.width, size)

    def body(x: Any, rows: Any) -> None:
        with loop("row", parallel_rows(x.shape[0], problem.width)) as row:
            factor = None
            if has_factor(problem.arithmetic):
                bits = _largest_bits(x, row, T.int64(0), problem.width)
                factor = named("factor", T.bind(factor_of(bits)))
            with loop("group", T.serial(whole)) as group:
                _round_group(problem, x, rows, row, T.cast(group, "int64") * size, size, factor)
            if rest:
                _round_group(problem, x, rows, row, T.int64(whole * size), rest, factor)
            with loop("behind", T.serial(problem.stride - problem.width)) as behind:
                T.buffer_store(rows, x[row, problem.width + behind], [row, problem.width + behind])

    return emit_kernel(parameters, body)


def _largest_bits(x: Any, row: Any, start: Any, count: int) -> Any:
    """Emit the search for the bits of the largest magnitude of ``count`` elements from ``start`` on."""
    largest = named("largest", T.alloc_buffer((1,), "int32"))
    T.buffer_store(largest, T.int32(0), [0])
    with loop("i", T.serial(count)) as i:
        bits = T.reinterpret("int32", T.cast(x[row, start + i], "float32")) & T.int32(_MAGNITUDE_BITS)
        T.buffer_store(largest, T.max(largest[0], bits), [0])
    return largest[0]


def _round_group(problem: RoundedRows, x: Any, rows: Any, row: Any, start: Any, count: int, factor: Any) -> None:
    """Emit the ``count`` elements from ``start`` on. One without a scale becomes zeros, one that is not finite NaN."""
    element, bits = ELEMENTS[problem.arithmetic], _largest_bits(x, row, start, count)
    finite = is_finite(bits)
    share = scale_of(problem.arithmetic, bits, factor)
    scale = named("scale", T.bind(T.Select(finite, share, T.float32(float("nan")))))
    usable = named("usable", T.bind(T.And(finite, scale > T.float32(0))))
    divisor = named("divisor", T.bind(T.Select(usable, scale, T.float32(1))))
    with loop("i", T.serial(count)) as i:
        quotient = T.cast(x[row, start + i], "float32") / divisor
        bounded = T.max(T.min(quotient, T.float32(element.largest)), T.float32(-element.largest))
        rounded = element.number_of(element.code_of(T.Select(usable, bounded, T.float32(0)))) * scale
        T.buffer_store(rows, T.cast(rounded, rows.dtype), [row, start + i])


ROUND = Kernel(
    "round_rows",
    "rows[r] = scale * round(x[r] / scale), a scale for each group",
    round_rows,
    how=lambda rows, _: in_storage(
        f"rows of {rows.width} columns to {rows.arithmetic}, every group by its own scale, kept as floats",
        rows.dtype,
        sums=False,
    ),
    why_not=lambda rows, _: why_not_stored(rows.dtype),
)
