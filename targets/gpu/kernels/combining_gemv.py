"""The last product for few tokens, fused with the sum over a token's experts, which saves a launch.

A block of threads computes some outputs of one token. One warp for each slot of the token (at most
:data:`MOST_TOGETHER` at a time) multiplies the slot's row with the same columns of its expert's matrix, see
:mod:`.gemv_tile`, and stores the sums in shared memory. Then one warp adds them up in the order of the slots, in
float32, as :mod:`.combine` does.

The preceding launch computes the rows, so a block that begins early fetches its first numbers of the matrix meanwhile.
"""

from __future__ import annotations

import dataclasses
import math

from tvm import tirx
from tvm.script import tirx as T

from moec.targets.gpu.kernels.gemv_tile import COLUMNS_PER_WARP, WarpTile, fetch_rows, multiply_rows
from moec.targets.gpu.kernels.gemv_tile import why_not as why_no_tile
from moec.targets.gpu.kernels.grouped_problem import GroupedProblem, match_matrix, with_tables_needed
from moec.targets.gpu.kernels.instructions import reduce_lanes, set_without_waiting, sync_block
from moec.targets.gpu.kernels.launch import BEFORE_WAIT, EARLY_ATTRIBUTES, WARP
from moec.targets.tvm.heavy.experts import CombineProblem
from moec.targets.tvm.kernels.activation import within
from moec.targets.tvm.kernels.kernel import Kernel

MOST_TOGETHER = 8
"""Slots of a token that a block computes at once."""
_LEAST_WARPS = 4


@dataclasses.dataclass(frozen=True)
class CombiningProblem:
    """Static facts of the kernel. ``product``: of the rows of pairs, [T * k, inner]; ``combine``: how its results are
    summed; ``slots``: k."""

    product: GroupedProblem
    combine: CombineProblem
    slots: int

    @property
    def together(self) -> int:
        """Warps of a team, which compute the same outputs for different slots."""
        return min(self.slots, MOST_TOGETHER)

    @property
    def teams(self) -> int:
        """Teams of warps in a block, each with its own outputs."""
        return math.ceil(_LEAST_WARPS / self.together)

    @property
    def warps(self) -> int:
        return self.together * self.teams

    @property
    def parts(self) -> int:
        """Blocks of threads for a token."""
        return -(-self.product.width // (self.teams * COLUMNS_PER_WARP))


def why_not(problem: CombiningProblem) -> str | None:
    """The reason why :func:`combining_gemv` cannot compute the problem, or None."""
    if problem.product.first_expert is not None:
        return "experts of several formats, each of which is a launch of its own"
    if problem.combine.identity_experts:
        return "experts that return their token have no product"
    return why_no_tile(problem.product)


@T.inline
def _multiply_slot(problem, tile, operands, expert, weight, results, place):
    """Store the weighted results of a pair in ``results[place]``."""
    product, combined = T.meta_var(problem.product), T.meta_var(problem.combine)
    rows, matrix, bias = T.meta_var(operands)
    sums = T.alloc_local((1, COLUMNS_PER_WARP), "float32")
    multiply_rows(tile, rows, matrix, expert, sums)
    for c in T.unroll(COLUMNS_PER_WARP):
        sums[0, c] = reduce_lanes(sums[0, c], "sum")
        if product.biased:
            sums[0, c] = sums[0, c] + bias[expert, tile.column(c)]
        if tile.lane == c:
            value: T.let = within(combined.limit, sums[0, c])
            results[place, c] = weight * value if combined.weighted else value


@T.inline
def _add_results(problem, lane, team, results, total):
    """Add a team's results to ``total``, in the order of the slots; each lane adds one output."""
    if lane < COLUMNS_PER_WARP:
        for j in T.unroll(problem.together):
            total[0] = total[0] + results[team * problem.together + j, lane]


@T.inline
def _fetch_ahead(product, matrix, chosen, token, slot, first, lane):
    """Start to fetch the matrix of a pair; its expert was chosen before the preceding launch began."""
    expert = T.local_scalar("int32")
    set_without_waiting(expert, chosen.ptr_to([token, slot]))
    if T.And(expert >= 0, expert < product.experts):
        tile = T.meta_var(WarpTile(product, first, lane, lambda _: 0))
        fetch_rows(tile, matrix, expert)


@T.inline
def _sum_token(problem, operands, weights, chosen, y, tokens):
    product = T.meta_var(problem.product)
    index = T.cta_id([T.max(tokens, 1) * problem.parts])
    thread = T.thread_id([problem.warps * WARP])
    results = T.alloc_shared((problem.warps, COLUMNS_PER_WARP), "float32")
    token: T.let = index // problem.parts
    lane: T.let = thread % WARP
    warp: T.let = thread // WARP
    team: T.let = warp // problem.together
    first: T.let = (index % problem.parts * problem.teams + team) * COLUMNS_PER_WARP
    total = T.alloc_local((1,), "float32")
    total[0] = T.float32(0)
    with T.attr(0, BEFORE_WAIT, 1):
        if T.And(token < tokens, T.And(warp % problem.together < problem.slots, first < product.width)):
            _fetch_ahead(product, operands[1], chosen, token, warp % problem.together, first, lane)
    if token < tokens:  # the same for all threads of a block, so all of them reach the barriers
        for turn in T.serial(-(-problem.slots // problem.together)):
            slot: T.let = turn * problem.together + warp % problem.together
            if lane < COLUMNS_PER_WARP:
                results[warp, lane] = T.float32(0)
            if T.And(slot < problem.slots, first < product.width):
                expert: T.let = chosen[token, slot]
                if T.And(expert >= 0, expert < product.experts):
                    pair: T.let = T.cast(token * problem.slots + slot, "int64")
                    tile = T.meta_var(WarpTile(product, first, lane, lambda _: pair))
                    weight: T.let = T.cast(weights[token, slot], "float32")
                    _multiply_slot(problem, tile, operands, expert, weight, results, warp)
            sync_block()
            _add_results(problem, lane, team, results, total)
            sync_block()
        if T.And(warp % problem.together == 0, T.And(lane < COLUMNS_PER_WARP, first + lane < problem.combine.width)):
            y[T.cast(token, "int64"), first + lane] = T.cast(total[0], problem.combine.dtype)


def combining_gemv(problem: CombiningProblem) -> tirx.PrimFunc:
    """The kernel ``(rows[P, inner], matrix[E, width, inner], bias[E, width], weights[T, k], experts[T, k],
    y[T, columns])``. Bias is float32, experts are int32. y has all columns of the product, or the first ones. A
    quantised matrix is three tensors, see :func:`~moec.targets.gpu.kernels.grouped_problem.grouped_kernel`.

    ``y[t] = sum over slots of w * (rows[t * k + slot] @ matrix[e].T + bias[e])`` for the ids e that are experts, with
    w = 1 unless ``weighted``, and results clamped to the limit. T may be 0; P is at least T * k.
    """
    product, (row_width, row_dtype) = problem.product, problem.product.row_type

    @T.prim_func
    def kernel(
        rows_handle: T.handle,
        matrix_handle: T.handle,
        scales_handle: T.handle,
        zero_points_handle: T.handle,
        bias_handle: T.handle,
        weights_handle: T.handle,
        experts_handle: T.handle,
        y_handle: T.handle,
    ):
        T.func_attr(EARLY_ATTRIBUTES)
        P = T.int32()
        tokens = T.int32()
        slots = T.int32()
        rows = T.match_buffer(rows_handle, (P, row_width), row_dtype)
        matrix = T.meta_var(match_matrix(product, matrix_handle, scales_handle, zero_points_handle))
        bias = T.match_buffer(bias_handle, product.bias_shape, "float32")
        weights = T.match_buffer(weights_handle, (tokens, slots), problem.combine.weight_dtype)
        chosen = T.match_buffer(experts_handle, (tokens, slots), "int32")
        y = T.match_buffer(y_handle, (tokens, problem.combine.width), problem.combine.dtype)
        T.device_entry()
        operands = T.meta_var((rows, matrix, bias))
        _sum_token(problem, operands, weights, chosen, y, tokens)

    return with_tables_needed(kernel, product)


COMBINING_GEMV = Kernel(
    "combining_gemv",
    "y[t] = sum over slots of weight * (rows[pair] @ matrix[expert of pair].T + bias)",
    combining_gemv,
    how=lambda problem, _: (
        f"few tokens: {problem.together} warps per outputs, each with a slot, and no launch to combine"
    ),
    why_not=lambda problem, _: why_not(problem),
)
