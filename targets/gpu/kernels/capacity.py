"""Capacity: drop the pairs beyond the capacity of their expert. All first choices are served before second choices.

One block of threads walks the pairs in that order, see :mod:`.ordered_walk`. A pair is dropped if the number of earlier
pairs of its expert reaches the capacity.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from moec.targets.gpu.kernels.launch import EARLY_ATTRIBUTES, WARP
from moec.targets.gpu.kernels.ordered_walk import (
    clear_counts,
    start_after_earlier_warps,
    start_walk,
    walk_in_order,
    warps_for,
)
from moec.targets.tvm.heavy.route import RouteProblem
from moec.targets.tvm.kernels.kernel import Kernel


def why_not(experts: int) -> str | None:
    """The reason why :func:`capacity` cannot count for ``experts`` experts, or None."""
    if warps_for(experts) == 0:
        return f"{experts} experts; the counts of one warp have to fit into shared memory"
    return None


def _pair_at(tokens: Any, place: Any) -> tuple[Any, Any]:
    """Token and slot of a place in the order of the walk, in which slots are outermost."""
    return T.truncmod(place, tokens), T.truncdiv(place, tokens)


@T.inline
def _drop_all(walk, tokens, kept_weights, kept_experts):
    for step in T.serial(T.ceildiv(walk.end - walk.first, WARP)):
        place: T.let = walk.first + step * WARP + walk.lane
        if place < walk.end:
            kept_weights[_pair_at(tokens, place)] = T.cast(T.float32(0), kept_weights.dtype)
            kept_experts[_pair_at(tokens, place)] = -1


def capacity(problem: RouteProblem) -> tirx.PrimFunc:
    """The kernel ``(weights[T, k], experts[T, k], kept_weights[T, k], kept_experts[T, k])``. Dropped pairs, and pairs
    without an expert, get id -1 and weight 0. Weights have ``dtype``, experts are int32. T may be 0."""
    experts, limit, dtype = problem.experts, problem.spec.capacity, problem.dtype
    warps = warps_for(experts)

    @T.prim_func
    def kernel(
        weights_handle: T.handle, experts_handle: T.handle, kept_weights_handle: T.handle, kept_experts_handle: T.handle
    ):
        T.func_attr(EARLY_ATTRIBUTES)
        tokens = T.int32()
        slots = T.int32()
        weights = T.match_buffer(weights_handle, (tokens, slots), dtype)
        chosen = T.match_buffer(experts_handle, (tokens, slots), "int32")
        kept_weights = T.match_buffer(kept_weights_handle, (tokens, slots), dtype)
        kept_experts = T.match_buffer(kept_experts_handle, (tokens, slots), "int32")
        T.device_entry()
        _block = T.cta_id([1])
        thread = T.thread_id([warps * WARP])
        counts = T.alloc_shared((warps, experts), "int32")
        totals = T.alloc_shared((experts,), "int32")

        @T.inline
        def keep(place, expert, rank):
            if rank < limit:
                kept_weights[_pair_at(tokens, place)] = weights[_pair_at(tokens, place)]
                kept_experts[_pair_at(tokens, place)] = expert

        @T.inline
        def drop_those_beyond(walk):
            _drop_all(walk, tokens, kept_weights, kept_experts)
            clear_counts(walk)
            walk_in_order(walk, lambda place: chosen[_pair_at(tokens, place)], lambda place, expert, rank: None)
            start_after_earlier_warps(walk, thread, totals)
            walk_in_order(walk, lambda place: chosen[_pair_at(tokens, place)], keep)

        start_walk(experts, warps, thread, tokens * slots, counts, drop_those_beyond)

    return kernel


CAPACITY = Kernel(
    "capacity",
    "pairs beyond the capacity of their expert become id -1, weight 0",
    capacity,
    how=lambda routing, _: (
        f"at most {routing.spec.capacity} pairs per expert, in one block of threads: pairs are served in order"
    ),
    why_not=lambda routing, _: why_not(routing.experts),
)
