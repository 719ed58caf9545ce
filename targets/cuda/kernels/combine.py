"""Combine: what the experts made of a token, weighted and summed in the order of the token's slots.

Every thread has one column of one token, and every sum one fixed order: no atomics.
"""

from __future__ import annotations

from tvm import tirx
from tvm.script import tirx as T

from moec.targets.cuda.kernels.launch import ATTRIBUTES
from moec.targets.tvm.activation import within
from moec.targets.tvm.kernel import Kernel, why_not_stored
from moec.targets.tvm.lower.experts import CombineProblem, PlacedRows

THREADS = 256


def _blocks_per_row(width: int) -> int:
    return -(-width // THREADS)


@T.inline
def _add_slot(how, total, id_of_slot, weight_of_slot, result, own):
    """``result()`` is what the expert made, ``own()`` the token itself; neither is read where it does not count."""
    E, identity_experts, weighted = T.meta_var(how)
    expert: T.let = id_of_slot
    weight: T.let = weight_of_slot
    if T.And(expert >= 0, expert < E):
        total[0] = total[0] + (weight * result() if weighted else result())
    if identity_experts > 0:  # decided here, the one below when the kernel runs  # noqa: SIM102
        if T.And(expert >= E, expert < E + identity_experts):
            total[0] = total[0] + weight * own()


def combine(problem: CombineProblem) -> tirx.PrimFunc:
    """``(x[T, width], weights[T, k], experts[T, k], pairs[T * k, width], y[T, width])``; T may be 0.

    ``y[t] = sum over slots of w * pairs[t * k + slot]`` for the ids in [0, E), with w = 1 unless ``weighted``, and
    pairs clamped to [-limit, limit] where ``limit`` > 0; an id in
    [E, E + identity_experts) adds the token itself times its routing weight; any other id adds nothing. Sums are
    float32.
    """
    E, width, blocks, limit = problem.experts, problem.width, _blocks_per_row(problem.width), problem.limit
    dtype, how = problem.dtype, (E, problem.identity_experts, problem.weighted)

    @T.prim_func
    def kernel(
        x_handle: T.handle,
        weights_handle: T.handle,
        experts_handle: T.handle,
        pairs_handle: T.handle,
        y_handle: T.handle,
    ):
        T.func_attr(ATTRIBUTES)
        tokens = T.int32()
        slots = T.int32()
        P = T.int32()
        x = T.match_buffer(x_handle, (tokens, width), dtype)
        weights = T.match_buffer(weights_handle, (tokens, slots), problem.weight_dtype)
        chosen = T.match_buffer(experts_handle, (tokens, slots), "int32")
        pairs = T.match_buffer(pairs_handle, (P, width), problem.pair_dtype)
        y = T.match_buffer(y_handle, (tokens, width), dtype)
        T.device_entry()
        index = T.cta_id([T.max(tokens, 1) * blocks])
        thread = T.thread_id([THREADS])
        token: T.let = index // blocks
        column: T.let = index % blocks * THREADS + thread
        total = T.alloc_local((1,), "float32")
        if T.And(token < tokens, column < width):
            total[0] = T.float32(0)
            for slot in T.serial(slots):
                _add_slot(
                    how,
                    total,
                    chosen[token, slot],
                    T.cast(weights[token, slot], "float32"),
                    lambda: within(limit, T.cast(pairs[T.cast(token * slots + slot, "int64"), column], "float32")),
                    lambda: T.cast(x[T.cast(token, "int64"), column], "float32"),
                )
            y[T.cast(token, "int64"), column] = T.cast(total[0], dtype)

    return kernel


def combine_placed(problem: PlacedRows) -> tirx.PrimFunc:
    """``(rows[R, width], weights[T, k], positions[T, k], y[T, width])``: the weighted sum of the rows of a token; a
    position outside [0, R) adds nothing. T may be 0."""
    width, blocks, dtype = problem.width, _blocks_per_row(problem.width), problem.dtype

    @T.prim_func
    def kernel(rows_handle: T.handle, weights_handle: T.handle, positions_handle: T.handle, y_handle: T.handle):
        T.func_attr(ATTRIBUTES)
        tokens = T.int32()
        slots = T.int32()
        R = T.int32()
        rows = T.match_buffer(rows_handle, (R, width), dtype)
        weights = T.match_buffer(weights_handle, (tokens, slots), problem.weight_dtype)
        positions = T.match_buffer(positions_handle, (tokens, slots), "int32")
        y = T.match_buffer(y_handle, (tokens, width), dtype)
        T.device_entry()
        index = T.cta_id([T.max(tokens, 1) * blocks])
        thread = T.thread_id([THREADS])
        token: T.let = index // blocks
        column: T.let = index % blocks * THREADS + thread
        total = T.alloc_local((1,), "float32")
        if T.And(token < tokens, column < width):
            total[0] = T.float32(0)
            for slot in T.serial(slots):
                row: T.let = positions[token, slot]
                if T.And(row >= 0, row < R):
                    weight: T.let = T.cast(weights[token, slot], "float32")
                    total[0] = total[0] + weight * T.cast(rows[T.cast(row, "int64"), column], "float32")
            y[T.cast(token, "int64"), column] = T.cast(total[0], dtype)

    return kernel


def trim(problem: CombineProblem) -> tirx.PrimFunc:
    """``(experts[R, 1], rows[R, width], y[R, width])``: the rows in the type of the result; zero where the id is not an
    expert."""
    E, width, blocks, dtype = problem.experts, problem.width, _blocks_per_row(problem.width), problem.dtype

    @T.prim_func
    def kernel(experts_handle: T.handle, rows_handle: T.handle, y_handle: T.handle):
        T.func_attr(ATTRIBUTES)
        R = T.int32()
        chosen = T.match_buffer(experts_handle, (R, 1), "int32")
        rows = T.match_buffer(rows_handle, (R, width), problem.pair_dtype)
        y = T.match_buffer(y_handle, (R, width), dtype)
        T.device_entry()
        index = T.cta_id([T.max(R, 1) * blocks])
        thread = T.thread_id([THREADS])
        row: T.let = index // blocks
        column: T.let = index % blocks * THREADS + thread
        value = T.alloc_local((1,), "float32")
        if T.And(row < R, column < width):
            expert: T.let = chosen[row, 0]
            value[0] = T.float32(0)
            if T.And(expert >= 0, expert < E):
                value[0] = T.cast(rows[T.cast(row, "int64"), column], "float32")
            y[T.cast(row, "int64"), column] = T.cast(value[0], dtype)

    return kernel


_HOW = "one thread per element, slots in their order"


def _why_not(problem: CombineProblem, machine: str) -> str | None:
    return why_not_stored(problem.dtype, problem.weight_dtype, problem.pair_dtype)


COMBINE = Kernel(
    "combine", "y[t] = sum over slots of weight * result of the pair", combine, lambda problem, _: _HOW, _why_not
)
COMBINE_PLACED = Kernel(
    "combine_placed",
    "y[t] = sum over slots of weight * rows[position of the slot]",
    combine_placed,
    lambda problem, _: _HOW,
    lambda problem, _: why_not_stored(problem.dtype, problem.weight_dtype),
)
TRIM = Kernel(
    "trim", "y[r] = rows[r]; 0 where the row has no expert", trim, lambda problem, _: "one thread per element", _why_not
)
