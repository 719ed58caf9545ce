"""RMS and layer normalisation of rows: the mean first, then the variance around it, each in a pass over the row."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from moec.targets.gpu.kernels.launch import ATTRIBUTES, BESIDE, STORING, TAKES
from moec.targets.gpu.kernels.row_share import (
    RowLayout,
    copy_elements,
    reduce_row,
    replace_elements,
    row_kernel,
    start_rows,
    visit_elements,
)
from moec.targets.tvm.heavy.rows import LAYER_NORM_FORMULA, RMS_NORM_FORMULA


def _scaled(value: Any, column: Any, scale: Any, bias: Any, centred: bool) -> Any:
    """The value with its scale and bias. The bias of an RMS norm is an operator of its own, so the product is rounded
    before."""
    factor = T.cast(scale[column], "float32")
    if bias is None:
        return value * factor
    scaled = value * factor if centred else T.call_extern("float32", "__fmul_rn", value, factor)
    return scaled + T.cast(bias[column], "float32")


@T.inline
def _normalize_row(share, x, scale, bias, y, epsilon, centred):
    mean = T.alloc_local((1,), "float32")
    variance = T.alloc_local((1,), "float32")
    mean[0] = T.float32(0)
    variance[0] = T.float32(0)

    @T.inline
    def add(column, value):
        mean[0] = mean[0] + value

    @T.inline
    def add_square(column, value):
        variance[0] = variance[0] + (value - mean[0]) * (value - mean[0])

    if centred:
        visit_elements(share, x, add)
        reduce_row(share, mean, "sum")
        mean[0] = mean[0] / T.cast(share.size, "float32")
    visit_elements(share, x, add_square)
    reduce_row(share, variance, "sum")
    deviation: T.let = T.sqrt(variance[0] / T.cast(share.size, "float32") + T.float32(epsilon))

    replace_elements(
        share,
        x,
        y,
        lambda column, value: _scaled((value - mean[0]) / deviation, column, scale, bias, centred),
    )


def normalize(
    layout: RowLayout, epsilon: float, centred: bool, scale_dtype: str, bias_dtype: str | None = None
) -> tirx.PrimFunc:
    """The kernel ``(x[M, N], scale[N], bias[N] if it has a type, y[M, N])``: layer normalisation if ``centred``, else
    RMS normalisation, in which the mean is taken to be 0.

    ``y = (x - mean) / sqrt(mean of (x - mean)**2 + epsilon) * scale + bias`` along N. Sums are float32; M may be 0.
    The form that stores its operand has another tensor, kept[M, N], before y.
    """
    dtypes = (scale_dtype, bias_dtype)
    storing = _normalization(layout, epsilon, centred, *dtypes, stores=True)
    kernel = _normalization(layout, epsilon, centred, *dtypes, stores=False)
    return kernel.with_attrs({TAKES: 0, STORING: storing, BESIDE: True})


def _normalization(
    layout: RowLayout, epsilon: float, centred: bool, scale_dtype: str, bias_dtype: str | None, *, stores: bool
) -> tirx.PrimFunc:
    N = layout.columns

    @T.prim_func
    def kernel(
        x_handle: T.handle, scale_handle: T.handle, bias_handle: T.handle, kept_handle: T.handle, y_handle: T.handle
    ):
        T.func_attr(ATTRIBUTES)
        M = T.int32()
        x = T.match_buffer(x_handle, (M, N), layout.dtype)
        scale = T.match_buffer(scale_handle, (N,), scale_dtype)
        bias = T.match_buffer(bias_handle, (N,), bias_dtype or scale_dtype)
        kept = T.match_buffer(kept_handle, (M, N), layout.dtype)
        y = T.match_buffer(y_handle, (M, N), layout.dtype)
        T.device_entry()

        @T.inline
        def compute(share):
            added = T.meta_var(None if bias_dtype is None else bias)
            rows = T.meta_var(kept if stores else x)
            if stores:
                copy_elements(share, x, kept)
            _normalize_row(share, rows, scale, added, y, epsilon, centred)

        start_rows(layout, M, N, compute)

    x, scale, bias, kept, y = kernel.params
    used = [x, scale, *([] if bias_dtype is None else [bias]), *([kept] if stores else []), y]
    return tirx.PrimFunc(used, kernel.body, kernel.ret_type, kernel.attrs)


RMS_NORM = row_kernel(
    "rms_norm", RMS_NORM_FORMULA, lambda rows, layout: normalize(layout, rows.epsilon, False, *rows.parameters)
)
LAYER_NORM = row_kernel(
    "layer_norm", LAYER_NORM_FORMULA, lambda rows, layout: normalize(layout, rows.epsilon, True, *rows.parameters)
)
