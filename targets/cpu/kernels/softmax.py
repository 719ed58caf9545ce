"""Softmax over the last axis: ``y[r, :] = exp(x[r, :] - max) / sum``. Rows and width are dynamic (0 and up).

Rows are dealt to the threads. Three sweeps over a row, which stays in the first-level cache: largest element,
exponentials with their sum, division. Maxima and sums are kept per vector lane and joined in lane order, the elements
beyond the last whole vector come last: the order never depends on threads.
"""

from __future__ import annotations

from tvm import tirx
from tvm.script import tirx as T

from moec.targets.cpu.hardware.machine import Machine
from moec.targets.cpu.kernels.elementary import exponential
from moec.targets.cpu.kernels.emit import parallel_rows
from moec.targets.cpu.kernels.rows import row_kernel
from moec.targets.tvm.heavy.rows import SOFTMAX_FORMULA
from moec.targets.tvm.text.steps import begin_step


@T.inline
def _store_scaled(y, exponentials, factor, row, vectors, whole, lanes):
    for vector in range(vectors):
        for lane in T.vectorized(lanes):
            y[row, vector * lanes + lane] = T.cast(exponentials[vector * lanes + lane] * factor, y.dtype)
    for rest in range(y.shape[1] - whole):
        y[row, whole + rest] = T.cast(exponentials[whole + rest] * factor, y.dtype)


def softmax(machine: Machine, dtype: str = "float32") -> tirx.PrimFunc:
    """The kernel ``(x[M, N], y[M, N])``; ``dtype`` is how both are stored, arithmetic is float32."""
    lanes = 2 * machine.lanes

    @T.prim_func(s_tir=True)
    def kernel(x_handle: T.handle, y_handle: T.handle):
        T.func_attr({"tirx.noalias": True})
        M, N = T.int64(), T.int64()
        x = T.match_buffer(x_handle, (M, N), dtype, align=64)
        y = T.match_buffer(y_handle, (M, N), dtype, align=64)
        for row in parallel_rows(M):
            vectors: T.let[T.int64] = N // lanes
            whole: T.let[T.int64] = vectors * lanes
            exponentials = T.alloc_buffer((N,), "float32")
            partial = T.alloc_buffer((lanes,), "float32", scope="local")
            joined = T.alloc_buffer((2,), "float32", scope="local")
            begin_step("the largest element")
            for lane in T.vectorized(lanes):
                partial[lane] = T.float32(float("-inf"))
            for vector in range(vectors):
                for lane in T.vectorized(lanes):
                    partial[lane] = T.max(partial[lane], T.cast(x[row, vector * lanes + lane], "float32"))
            joined[0] = T.float32(float("-inf"))
            for lane in T.unroll(lanes):
                joined[0] = T.max(joined[0], partial[lane])
            for rest in range(N - whole):
                joined[0] = T.max(joined[0], T.cast(x[row, whole + rest], "float32"))

            begin_step("exponentials and their sum")
            for lane in T.vectorized(lanes):
                partial[lane] = T.float32(0)
            for vector in range(vectors):
                for lane in T.vectorized(lanes):
                    exponentials[vector * lanes + lane] = exponential(
                        T.cast(x[row, vector * lanes + lane], "float32") - joined[0]
                    )
                for lane in T.vectorized(lanes):
                    partial[lane] = partial[lane] + exponentials[vector * lanes + lane]
            joined[1] = T.float32(0)
            for lane in T.unroll(lanes):
                joined[1] = joined[1] + partial[lane]
            for rest in range(N - whole):
                exponentials[whole + rest] = exponential(T.cast(x[row, whole + rest], "float32") - joined[0])
                joined[1] = joined[1] + exponentials[whole + rest]

            begin_step("the exponentials divided by their sum")
            joined[1] = T.float32(1) / joined[1]
            _store_scaled(y, exponentials, joined[1], row, vectors, whole, lanes)

    return kernel


SOFTMAX = row_kernel("softmax", SOFTMAX_FORMULA, lambda rows, machine: softmax(machine, rows.dtype))
