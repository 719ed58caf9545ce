"""Combine: what the experts made of a token, weighted and summed in the order of the token's slots.

Every thread has one column of one token, and every sum one fixed order: no atomics.
"""

from __future__ import annotations

from tvm import tirx
from tvm.script import tirx as T

from moec.targets.cuda.kernels.launch import ATTRIBUTES
from moec.targets.tvm.activation import within
from moec.targets.tvm.kernel import Kernel, why_not_stored
from moec.targets.tvm.lower.experts import CombineProblem

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


def separate(problem: CombineProblem) -> tirx.PrimFunc:
    """``(experts[T, k], pairs[T * k, width], y[T, k, width])``: the results of all pairs, not summed; zero where the id
    is not an expert."""
    E, width, blocks, dtype = problem.experts, problem.width, _blocks_per_row(problem.width), problem.dtype

    @T.prim_func
    def kernel(experts_handle: T.handle, pairs_handle: T.handle, y_handle: T.handle):
        T.func_attr(ATTRIBUTES)
        tokens = T.int32()
        slots = T.int32()
        P = T.int32()
        chosen = T.match_buffer(experts_handle, (tokens, slots), "int32")
        pairs = T.match_buffer(pairs_handle, (P, width), problem.pair_dtype)
        y = T.match_buffer(y_handle, (tokens, slots, width), dtype)
        T.device_entry()
        index = T.cta_id([T.max(tokens * slots, 1) * blocks])
        thread = T.thread_id([THREADS])
        pair: T.let = index // blocks
        column: T.let = index % blocks * THREADS + thread
        value = T.alloc_local((1,), "float32")
        if T.And(pair < tokens * slots, column < width):
            token: T.let = T.truncdiv(pair, slots)
            slot: T.let = T.truncmod(pair, slots)
            expert: T.let = chosen[token, slot]
            value[0] = T.float32(0)
            if T.And(expert >= 0, expert < E):
                value[0] = T.cast(pairs[T.cast(pair, "int64"), column], "float32")
            y[T.cast(token, "int64"), slot, column] = T.cast(value[0], dtype)

    return kernel


_HOW = "one thread per element, slots in their order"


def _why_not(problem: CombineProblem, machine: str) -> str | None:
    return why_not_stored(problem.dtype, problem.weight_dtype, problem.pair_dtype)


COMBINE = Kernel(
    "combine", "y[t] = sum over slots of weight * result of the pair", combine, lambda problem, _: _HOW, _why_not
)
SEPARATE = Kernel("separate", "y[t, slot] = result of the pair", separate, lambda problem, _: _HOW, _why_not)
