"""Grouped product for few tokens: a matrix-vector product per pair (token, slot), without dispatch.

With few tokens, few pairs share an expert, and the time is that of reading weights. A warp computes some outputs of one
pair, see :mod:`.gemv_tile`. Each pair reads its expert's weights itself; further pairs with the same expert find them
in the second-level cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from moec.targets.gpu.kernels.gemv_tile import COLUMNS_PER_WARP, WarpTile, multiply_rows, why_not
from moec.targets.gpu.kernels.grouped_problem import GroupedProblem, match_matrix, with_tables_needed
from moec.targets.gpu.kernels.instructions import reduce_lanes
from moec.targets.gpu.kernels.launch import BESIDE, EARLY_ATTRIBUTES, WARP
from moec.targets.tvm.kernels.kernel import Kernel
from moec.targets.tvm.text.steps import begin_step

WARPS = 4


@T.inline
def _store(tile, epilogue, pair, expert, factor, sums, bias, out):
    problem = T.meta_var(tile.problem)
    for c in T.unroll(COLUMNS_PER_WARP):
        sums[0, c] = reduce_lanes(sums[0, c], "sum") * factor
        if problem.biased:
            sums[0, c] = sums[0, c] + bias[expert, tile.column(c)]
    for i in T.unroll(tile.count):
        if T.And(tile.lane == i, tile.first + i < problem.width):
            if problem.gated:
                value: T.let = epilogue(sums[0, 2 * i], sums[0, 2 * i + 1])
                out[T.cast(pair, "int64"), tile.first + i] = T.cast(value, problem.out_dtype)
            else:
                out[T.cast(pair, "int64"), tile.first + i] = T.cast(epilogue(sums[0, i]), problem.out_dtype)


@T.inline
def _compute(problem, epilogue, rows, matrix, bias, weights, chosen, out, tokens, slots):
    outputs_per_warp = T.meta_var(COLUMNS_PER_WARP // (2 if problem.gated else 1))
    parts = T.meta_var(-(-problem.width // (WARPS * outputs_per_warp)))
    index = T.cta_id([T.max(tokens * slots, 1) * parts])
    thread = T.thread_id([WARPS * WARP])
    pair: T.let = index // parts
    lane: T.let = thread % WARP
    first: T.let = (index % parts * WARPS + thread // WARP) * outputs_per_warp
    if T.And(pair < tokens * slots, first < problem.width):
        token: T.let = T.truncdiv(pair, slots)
        slot: T.let = T.truncmod(pair, slots)
        expert: T.let = problem.number(chosen[token, slot])
        if T.And(expert >= 0, expert < problem.experts):
            row: T.let = T.cast(token if problem.gathered else pair, "int64")
            tile = T.meta_var(WarpTile(problem, first, lane, lambda _: row))
            factor: T.let = T.cast(weights[token, slot], "float32") if problem.weighted else T.float32(1)
            sums = T.alloc_local((1, COLUMNS_PER_WARP), "float32")
            begin_step("each lane multiplies its inputs")
            multiply_rows(tile, rows, matrix, expert, sums)
            begin_step("sums over the lanes, bias, activation")
            _store(tile, epilogue, pair, expert, factor, sums, bias, out)


def grouped_gemv(problem: GroupedProblem, epilogue: Callable[..., Any]) -> tirx.PrimFunc:
    """The kernel ``(rows[R, inner], matrix[E, columns, inner], bias[E, columns], weights[T, k], experts[T, k],
    out[T * k, width])``. Bias is float32, experts are int32. A quantised matrix is three tensors, see
    :func:`~moec.targets.gpu.kernels.grouped_problem.grouped_kernel`.

    ``out[t * k + slot] = epilogue(rows[r] @ matrix[e].T + bias[e])`` for the pairs whose id e is an expert; rows of
    ``out`` for other pairs are not written. Row r is t if the problem is ``gathered``, else ``t * k + slot``. If it is
    ``weighted``, the row is multiplied by the pair's weight. ``epilogue`` is ``f(gate, up)`` if gated, else ``f(sum)``.
    T may be 0. The problem's ``block_rows`` and ``scattered`` do not matter.
    """
    width, (row_width, row_dtype) = problem.width, problem.row_type

    @T.prim_func
    def kernel(
        rows_handle: T.handle,
        matrix_handle: T.handle,
        scales_handle: T.handle,
        zero_points_handle: T.handle,
        bias_handle: T.handle,
        weights_handle: T.handle,
        experts_handle: T.handle,
        out_handle: T.handle,
    ):
        T.func_attr(EARLY_ATTRIBUTES)
        R = T.int32()
        tokens = T.int32()
        slots = T.int32()
        Q = T.int32()
        rows = T.match_buffer(rows_handle, (R, row_width), row_dtype)
        matrix = T.meta_var(match_matrix(problem, matrix_handle, scales_handle, zero_points_handle))
        bias = T.match_buffer(bias_handle, problem.bias_shape, "float32")
        weights = T.match_buffer(weights_handle, (tokens, slots), problem.routing_dtype)
        chosen = T.match_buffer(experts_handle, (tokens, slots), "int32")
        out = T.match_buffer(out_handle, (Q, width), problem.out_dtype)
        T.device_entry()
        _compute(problem, epilogue, rows, matrix, bias, weights, chosen, out, tokens, slots)

    return with_tables_needed(kernel, problem).with_attr(BESIDE, True)


GROUPED_GEMV = Kernel(
    "grouped_gemv",
    "out[pair] = activation(rows[pair] @ matrix[expert of pair].T + bias)",
    grouped_gemv,
    how=lambda problem, _: "few tokens: a warp per outputs of a pair, no dispatch",
    why_not=lambda problem, _: why_not(problem),
)
