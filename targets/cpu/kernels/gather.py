"""Gather: the rows that each expert serves, side by side, ready for the grouped matrix product."""

from __future__ import annotations

import dataclasses
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from moec.targets.cpu.kernels.emit import Parameter, emit_kernel, loop, named, parallel_rows
from moec.targets.tvm.kernels.kernel import Kernel, in_storage, why_not_stored

SPARE_ROWS = 31
"""Rows after the last one that matrix tiles may read; their contents do not matter."""


def row_width(width: int, element_bytes: int = 4) -> int:
    """Elements from one row to the next: an odd number of cache lines, so that the rows of a register tile lie in
    different sets of the cache even where the width is a power of two."""
    per_line = 64 // element_bytes
    return ((-(-width // per_line)) | 1) * per_line


def gather(
    width: int,
    dtype: str,
    *,
    filled: int,
    weighted: bool,
    weight_dtype: str = "float32",
    out_dtype: str = "float32",
) -> tirx.PrimFunc:
    """``(x[T, width], weights[T, k], order[P], offsets[E + 1], rows[R, row_width(filled)])``.

    ``rows[r] = x[order[r] // k]``, times the pair's routing weight if ``weighted``, for every r below ``offsets[E]``,
    padded with zeros up to column ``filled``; later rows are not written. x has ``dtype``, rows ``out_dtype``
    (float32 or bfloat16).
    """
    bytes_per_element = 2 if out_dtype == "bfloat16" else 4

    @T.prim_func(s_tir=True)
    def kernel(
        x_handle: T.handle,
        weights_handle: T.handle,
        order_handle: T.handle,
        offsets_handle: T.handle,
        rows_handle: T.handle,
    ):
        T.func_attr({"tirx.noalias": True})
        tokens = T.int64()
        slots = T.int64()
        P = T.int64()
        R = T.int64()
        bounds = T.int64()
        x = T.match_buffer(x_handle, (tokens, width), dtype)
        weights = T.match_buffer(weights_handle, (tokens, slots), weight_dtype)
        order = T.match_buffer(order_handle, (P,), "int32")
        offsets = T.match_buffer(offsets_handle, (bounds,), "int32")
        rows = T.match_buffer(rows_handle, (R, row_width(filled, bytes_per_element)), out_dtype)
        for row in parallel_rows(T.cast(offsets[bounds - 1], "int64"), width):
            pair: T.let = T.cast(order[row], "int64")
            for column in T.serial(width):
                if weighted:
                    rows[row, column] = T.cast(
                        T.cast(x[pair // slots, column], "float32")
                        * T.cast(weights[pair // slots, pair % slots], "float32"),
                        out_dtype,
                    )
                else:
                    rows[row, column] = T.cast(T.cast(x[pair // slots, column], "float32"), out_dtype)
            for column in T.serial(filled - width):
                rows[row, width + column] = T.cast(T.float32(0), out_dtype)

    return kernel


def gather_quantized(row_bytes: int, *, weighted: bool, weight_dtype: str = "float32") -> tirx.PrimFunc:
    """``(values[T, row_bytes], scales[T, A], sums[T, S], weights[T, k], order[P], offsets[E + 1], rows[R, row_bytes],
    row_scales[R, A], row_sums[R, S])``: as :func:`gather`, of rows that :mod:`.quantize_rows` has made.

    A routing weight multiplies the scales alone: it does not change the rounding.
    """
    parameters = [
        Parameter("values", ("tokens", row_bytes), "int8"),
        Parameter("scales", ("tokens", "A"), "float32"),
        Parameter("sums", ("tokens", "S"), "int32"),
        Parameter("weights", ("tokens", "slots"), weight_dtype),
        Parameter("order", ("P",), "int32"),
        Parameter("offsets", ("bounds",), "int32"),
        Parameter("rows", ("R", row_bytes), "int8"),
        Parameter("row_scales", ("R", "A"), "float32"),
        Parameter("row_sums", ("R", "S"), "int32"),
    ]

    def body(values, scales, sums, weights, order, offsets, rows, row_scales, row_sums) -> None:
        slots = weights.shape[1]
        with loop("row", parallel_rows(T.cast(offsets[offsets.shape[0] - 1], "int64"), row_bytes)) as row:
            pair = named("pair", T.bind(T.cast(order[row], "int64")))
            token = named("token", T.bind(pair // slots))
            factor: Any = T.bind(T.cast(weights[token, pair % slots], "float32")) if weighted else None
            with loop("line", T.serial(row_bytes // 64)) as line, loop("i", T.vectorized(64)) as i:
                T.buffer_store(rows, values[token, line * 64 + i], [row, line * 64 + i])
            with loop("group", T.serial(scales.shape[1])) as group:
                scale = scales[token, group] if factor is None else scales[token, group] * factor
                T.buffer_store(row_scales, scale, [row, group])
            with loop("group", T.serial(sums.shape[1])) as group:
                T.buffer_store(row_sums, sums[token, group], [row, group])

    return emit_kernel(parameters, body)


@dataclasses.dataclass(frozen=True)
class GatheredRows:
    """Rows of ``width`` elements of ``dtype``."""

    width: int
    dtype: str


GATHER = Kernel(
    "gather",
    "rows[r] = x[order[r] // k]",
    gather,
    how=lambda rows, _: in_storage(
        f"rows of {rows.width} columns side by side for the grouped product", rows.dtype, sums=False
    ),
    why_not=lambda rows, _: why_not_stored(rows.dtype),
)
GATHER_QUANTIZED = Kernel(
    "gather_quantized",
    "rows[r] = quantized x[order[r] // k]",
    gather_quantized,
    how=lambda rows, _: f"int8 rows of {rows.width} columns, with scales and sums, side by side",
)
