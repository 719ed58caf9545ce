"""Normalisation over the last axis: RMS norm ``y = x / sqrt(mean(x^2) + epsilon) * scale`` and layer norm
``y = (x - mean) / sqrt(variance + epsilon) * scale + bias``. Rows and width are dynamic (0 and up).

Rows are dealt to the threads. Sums are kept per vector lane and joined in lane order, the elements beyond the last
whole vector come last: the order never depends on threads. The variance is the mean squared distance from the mean, in
a second sweep: the one-sweep formula cancels badly.
"""

from __future__ import annotations

from tvm import tirx
from tvm.script import tirx as T

from moec.targets.cpu.hardware.machine import Machine
from moec.targets.cpu.kernels.emit import parallel_rows
from moec.targets.cpu.kernels.rows import row_kernel
from moec.targets.tvm.heavy.rows import LAYER_NORM_FORMULA, RMS_NORM_FORMULA
from moec.targets.tvm.text.steps import begin_step


@T.inline
def _mean(result, N, lanes, element):
    """``result[0] = mean of element(j) for j < N``; element must accept vector indices."""
    partial = T.alloc_buffer((lanes,), "float32", scope="local")
    for lane in T.vectorized(lanes):
        partial[lane] = T.float32(0)
    for vector in range(N // lanes):
        for lane in T.vectorized(lanes):
            partial[lane] = partial[lane] + element(vector * lanes + lane)
    result[0] = T.float32(0)
    for lane in T.unroll(lanes):
        result[0] = result[0] + partial[lane]
    for rest in range(N % lanes):
        result[0] = result[0] + element(N // lanes * lanes + rest)
    result[0] = result[0] / T.cast(N, "float32")


@T.inline
def _write(y, row, N, lanes, element):
    """``y[row, j] = element(j)`` for j < N."""
    for vector in range(N // lanes):
        for lane in T.vectorized(lanes):
            y[row, vector * lanes + lane] = T.cast(element(vector * lanes + lane), y.dtype)
    for rest in range(N % lanes):
        y[row, N // lanes * lanes + rest] = T.cast(element(N // lanes * lanes + rest), y.dtype)


def rms_norm(epsilon: float, machine: Machine, dtype: str = "float32") -> tirx.PrimFunc:
    """The kernel ``(x[M, N], scale[N], y[M, N])``; ``dtype`` is how all are stored, arithmetic is float32."""
    lanes = 2 * machine.lanes

    @T.prim_func(s_tir=True)
    def kernel(x_handle: T.handle, scale_handle: T.handle, y_handle: T.handle):
        T.func_attr({"tirx.noalias": True})
        M, N = T.int64(), T.int64()
        x = T.match_buffer(x_handle, (M, N), dtype, align=64)
        scale = T.match_buffer(scale_handle, (N,), dtype, align=64)
        y = T.match_buffer(y_handle, (M, N), dtype, align=64)
        for row in parallel_rows(M):
            factor = T.alloc_buffer((1,), "float32", scope="local")
            begin_step("the mean of the squares")
            _mean(factor, N, lanes, lambda j: T.cast(x[row, j], "float32") * T.cast(x[row, j], "float32"))
            factor[0] = T.float32(1) / T.sqrt(factor[0] + T.float32(epsilon))
            begin_step("the normalised row")
            _write(y, row, N, lanes, lambda j: T.cast(x[row, j], "float32") * factor[0] * T.cast(scale[j], "float32"))

    return kernel


def layer_norm(epsilon: float, machine: Machine, dtype: str = "float32") -> tirx.PrimFunc:
    """The kernel ``(x[M, N], scale[N], bias[N], y[M, N])``; ``dtype`` is how all are stored, arithmetic is float32."""
    lanes = 2 * machine.lanes

    @T.prim_func(s_tir=True)
    def kernel(x_handle: T.handle, scale_handle: T.handle, bias_handle: T.handle, y_handle: T.handle):
        T.func_attr({"tirx.noalias": True})
        M, N = T.int64(), T.int64()
        x = T.match_buffer(x_handle, (M, N), dtype, align=64)
        scale = T.match_buffer(scale_handle, (N,), dtype, align=64)
        bias = T.match_buffer(bias_handle, (N,), dtype, align=64)
        y = T.match_buffer(y_handle, (M, N), dtype, align=64)
        for row in parallel_rows(M):
            mean = T.alloc_buffer((1,), "float32", scope="local")
            factor = T.alloc_buffer((1,), "float32", scope="local")
            begin_step("the mean")
            _mean(mean, N, lanes, lambda j: T.cast(x[row, j], "float32"))
            begin_step("the variance")
            _mean(
                factor,
                N,
                lanes,
                lambda j: (T.cast(x[row, j], "float32") - mean[0]) * (T.cast(x[row, j], "float32") - mean[0]),
            )
            factor[0] = T.float32(1) / T.sqrt(factor[0] + T.float32(epsilon))
            begin_step("the normalised row")
            _write(
                y,
                row,
                N,
                lanes,
                lambda j: (
                    (T.cast(x[row, j], "float32") - mean[0]) * factor[0] * T.cast(scale[j], "float32")
                    + T.cast(bias[j], "float32")
                ),
            )

    return kernel


RMS_NORM = row_kernel("rms_norm", RMS_NORM_FORMULA, lambda rows, machine: rms_norm(rows.epsilon, machine, rows.dtype))
LAYER_NORM = row_kernel(
    "layer_norm", LAYER_NORM_FORMULA, lambda rows, machine: layer_norm(rows.epsilon, machine, rows.dtype)
)
