"""Softmax of rows in three passes over each row: the largest element, the sum of the exponentials, and the quotients.

A row with a NaN or plus infinity, or with nothing but minus infinities, becomes NaN, as in numpy.
"""

from __future__ import annotations

from tvm import tirx
from tvm.script import tirx as T

from moec.targets.gpu.kernels.launch import ATTRIBUTES
from moec.targets.gpu.kernels.row_share import (
    RowLayout,
    reduce_row,
    replace_elements,
    row_kernel,
    start_rows,
    visit_elements,
)
from moec.targets.tvm.heavy.rows import SOFTMAX_FORMULA


@T.inline
def _softmax_row(share, x, y):
    largest = T.alloc_local((1,), "float32")
    total = T.alloc_local((1,), "float32")
    largest[0] = T.float32(float("-inf"))
    total[0] = T.float32(0)

    @T.inline
    def compare(column, value):
        largest[0] = T.max(largest[0], value)

    @T.inline
    def add(column, value):
        total[0] = total[0] + T.exp(value - largest[0])

    visit_elements(share, x, compare)
    reduce_row(share, largest, "max")
    visit_elements(share, x, add)
    reduce_row(share, total, "sum")
    replace_elements(share, x, y, lambda column, value: T.exp(value - largest[0]) / total[0])


def softmax(layout: RowLayout) -> tirx.PrimFunc:
    """The kernel ``(x[M, N], y[M, N])`` with ``y = exp(x - max(x)) / sum(exp(x - max(x)))`` along N. M may be 0. Sums
    are float32, whatever the type of the rows."""

    N = layout.columns

    @T.prim_func
    def kernel(x_handle: T.handle, y_handle: T.handle):
        T.func_attr(ATTRIBUTES)
        M = T.int32()
        x = T.match_buffer(x_handle, (M, N), layout.dtype)
        y = T.match_buffer(y_handle, (M, N), layout.dtype)
        T.device_entry()

        @T.inline
        def compute(share):
            _softmax_row(share, x, y)

        start_rows(layout, M, N, compute)

    return kernel


SOFTMAX = row_kernel("softmax", SOFTMAX_FORMULA, lambda rows, layout: softmax(layout))
