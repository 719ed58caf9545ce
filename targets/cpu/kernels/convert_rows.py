"""Rows in the type and width that a product takes: converted, and padded with zeros."""

from __future__ import annotations

import functools
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from moec.targets.cpu.kernels.emit import Parameter, emit_kernel, loop, parallel_rows
from moec.targets.cpu.kernels.gather import row_width
from moec.targets.tvm.kernels.kernel import Kernel, in_storage, why_not_stored


@functools.cache
def convert_rows(width: int, dtype: str, filled: int, out_dtype: str) -> tirx.PrimFunc:
    """``(x[M, width], rows[R, row_width(filled)])``, R >= M: the rows from M on are not written."""
    out_width = row_width(filled, 2 if out_dtype == "bfloat16" else 4)
    parameters = [Parameter("x", ("M", width), dtype), Parameter("rows", ("R", out_width), out_dtype)]

    def body(x: Any, rows: Any) -> None:
        with loop("row", parallel_rows(x.shape[0], width)) as row:
            with loop("column", T.serial(width)) as column:
                T.buffer_store(rows, T.cast(T.cast(x[row, column], "float32"), out_dtype), [row, column])
            with loop("column", T.serial(filled - width)) as column:
                T.buffer_store(rows, T.cast(T.float32(0), out_dtype), [row, width + column])

    return emit_kernel(parameters, body)


CONVERT = Kernel(
    "convert_rows",
    "rows[M, K] in another type, zero filled",
    convert_rows,
    how=lambda dtype, _: in_storage("one pass over the rows", dtype, sums=False),
    why_not=lambda dtype, _: why_not_stored(dtype),
)
