"""Gather: the rows that each expert serves, side by side and in float32, ready for the grouped matrix product."""

from __future__ import annotations

from tvm import tirx
from tvm.script import tirx as T


def row_width(width: int) -> int:
    """Floats from one row to the next: an odd number of cache lines, so that the rows of a register tile lie in
    different sets of the cache even where the width is a power of two."""
    return ((-(-width // 16)) | 1) * 16


def gather(width: int, dtype: str, *, weighted: bool, weight_dtype: str = "float32") -> tirx.PrimFunc:
    """``(x[T, width], weights[T, k], order[P], offsets[E + 1], rows[P, row_width(width)])``.

    ``rows[r] = x[order[r] // k]``, times the pair's routing weight if ``weighted``, for every r below ``offsets[E]``;
    the rows behind are not written. x has ``dtype``, rows are float32.
    """

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
        bounds = T.int64()
        x = T.match_buffer(x_handle, (tokens, width), dtype)
        weights = T.match_buffer(weights_handle, (tokens, slots), weight_dtype)
        order = T.match_buffer(order_handle, (P,), "int32")
        offsets = T.match_buffer(offsets_handle, (bounds,), "int32")
        rows = T.match_buffer(rows_handle, (P, row_width(width)), "float32")
        for row in T.parallel(T.cast(offsets[bounds - 1], "int64")):
            pair: T.let = T.cast(order[row], "int64")
            for column in T.serial(width):
                if weighted:
                    rows[row, column] = T.cast(x[pair // slots, column], "float32") * T.cast(
                        weights[pair // slots, pair % slots], "float32"
                    )
                else:
                    rows[row, column] = T.cast(x[pair // slots, column], "float32")

    return kernel
