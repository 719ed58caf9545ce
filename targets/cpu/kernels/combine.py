"""Combine: the weighted sum of the experts' results for a token, in the order of the token's slots.

Tokens are independent and every sum has one fixed order: no atomics, and the same bits for every number of threads.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from moec.targets.cpu.kernels.emit import Parameter, emit_kernel, loop, named, parallel_rows
from moec.targets.tvm.heavy.experts import CombineProblem, PlacedRows
from moec.targets.tvm.kernels.activation import within
from moec.targets.tvm.kernels.kernel import Kernel, in_storage, why_not_stored


def combine(problem: CombineProblem) -> tirx.PrimFunc:
    """``(x[T, width], weights[T, k], experts[T, k], pairs[P, columns], y[T, width])``.

    ``y[t] = sum over slots of w * pairs[t * k + slot]`` for the ids in [0, E), with w = 1 unless ``weighted``, and
    pairs clamped to [-limit, limit] where ``limit`` > 0; an id in
    [E, E + identity_experts) adds the token itself times its routing weight; any other id adds nothing.
    """
    E, width, dtype, limit = problem.experts, problem.width, problem.dtype, problem.limit
    weighted, identity_experts = problem.weighted, problem.identity_experts

    @T.prim_func(s_tir=True)
    def kernel(
        x_handle: T.handle,
        weights_handle: T.handle,
        experts_handle: T.handle,
        pairs_handle: T.handle,
        y_handle: T.handle,
    ):
        T.func_attr({"tirx.noalias": True})
        tokens = T.int64()
        slots = T.int64()
        P = T.int64()
        x = T.match_buffer(x_handle, (tokens, width), dtype)
        weights = T.match_buffer(weights_handle, (tokens, slots), problem.weight_dtype)
        chosen = T.match_buffer(experts_handle, (tokens, slots), "int32")
        pairs = T.match_buffer(pairs_handle, (P, problem.columns), "float32")
        y = T.match_buffer(y_handle, (tokens, width), dtype)
        for token in parallel_rows(tokens, 4 * width):
            total = T.alloc_buffer((width,), "float32")
            weight = T.alloc_buffer((1,), "float32")
            for column in T.serial(width):
                total[column] = T.float32(0)
            for slot in T.serial(slots):
                expert: T.let = chosen[token, slot]
                weight[0] = T.cast(weights[token, slot], "float32")
                if T.And(expert >= 0, expert < E):
                    for column in T.serial(width):
                        result: T.let = within(limit, pairs[token * slots + slot, column])
                        total[column] = total[column] + (weight[0] * result if weighted else result)
                if identity_experts > 0:  # decided here, the one below when the kernel runs  # noqa: SIM102
                    if T.And(expert >= E, expert < E + identity_experts):
                        for column in T.serial(width):
                            total[column] = total[column] + weight[0] * T.cast(x[token, column], "float32")
            for column in T.serial(width):
                y[token, column] = T.cast(total[column], dtype)

    return kernel


def combine_placed(problem: PlacedRows) -> tirx.PrimFunc:
    """``(rows[R, width], weights[T, k], positions[T, k], y[T, width])``: the weighted sum of the rows of a token; a
    position outside [0, R) adds nothing."""
    width, dtype = problem.width, problem.dtype
    parameters = [
        Parameter("rows", ("R", width), dtype),
        Parameter("weights", ("T", "k"), problem.weight_dtype),
        Parameter("positions", ("T", "k"), "int32"),
        Parameter("y", ("T", width), dtype),
    ]

    def body(rows: Any, weights: Any, positions: Any, y: Any) -> None:
        with loop("token", parallel_rows(weights.shape[0], 4 * width)) as token:
            total = named("total", T.alloc_buffer((width,), "float32"))
            with loop("column", T.serial(width)) as column:
                T.buffer_store(total, T.float32(0), [column])
            with loop("slot", T.serial(weights.shape[1])) as slot:
                row = named("row", T.bind(T.cast(positions[token, slot], "int64")))
                weight = named("weight", T.bind(T.cast(weights[token, slot], "float32")))
                with T.If(T.And(row >= 0, row < rows.shape[0])), T.Then(), loop("column", T.serial(width)) as column:
                    result = total[column] + weight * T.cast(rows[row, column], "float32")
                    T.buffer_store(total, result, [column])
            with loop("column", T.serial(width)) as column:
                T.buffer_store(y, T.cast(total[column], dtype), [token, column])

    return emit_kernel(parameters, body)


def trim(problem: CombineProblem) -> tirx.PrimFunc:
    """``(experts[R, 1], rows[R, columns], y[R, width])``: the rows without their padding; zero where the id is not an
    expert."""
    E, width, dtype = problem.experts, problem.width, problem.dtype
    parameters = [
        Parameter("experts", ("R", 1), "int32"),
        Parameter("rows", ("R", problem.columns), "float32"),
        Parameter("y", ("R", width), dtype),
    ]

    def body(experts: Any, rows: Any, y: Any) -> None:
        with loop("row", parallel_rows(rows.shape[0], width)) as row:
            expert = named("expert", T.bind(experts[row, 0]))
            with T.If(T.And(expert >= 0, expert < E)):
                with T.Then(), loop("column", T.serial(width)) as column:
                    T.buffer_store(y, T.cast(rows[row, column], dtype), [row, column])
                with T.Else(), loop("column", T.serial(width)) as column:
                    T.buffer_store(y, T.cast(T.float32(0), dtype), [row, column])

    return emit_kernel(parameters, body)


COMBINE = Kernel(
    "combine",
    "y[t] = sum over slots of weights[t, slot] * pairs[t, slot]",
    combine,
    how=lambda problem, _: in_storage(
        f"{problem.width} columns, summed in the order of the slots, no atomics", problem.dtype
    ),
    why_not=lambda problem, _: why_not_stored(problem.dtype),
)
COMBINE_PLACED = Kernel(
    "combine_placed",
    "y[t] = sum over slots of weights[t, slot] * rows[positions[t, slot]]",
    combine_placed,
    how=lambda problem, _: in_storage(
        f"{problem.width} columns, summed in the order of the slots, no atomics", problem.dtype
    ),
    why_not=lambda problem, _: why_not_stored(problem.dtype, problem.weight_dtype),
)
TRIM = Kernel(
    "trim",
    "y[r] = rows[r] without padding; 0 where the row has no expert",
    trim,
    how=lambda problem, _: in_storage(f"{problem.width} columns per row", problem.dtype, sums=False),
    why_not=lambda problem, _: why_not_stored(problem.dtype),
)
