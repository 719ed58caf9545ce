"""Capacity: drop the pairs that find their expert full. All first choices are served before any second choice.

The pairs are walked in that order by one block of threads, see :mod:`.ordered_walk`; a pair is dropped when as many
pairs of its expert come before it as the expert serves.
"""

from __future__ import annotations

from tvm import tirx
from tvm.script import tirx as T

from moec.targets.cuda.kernels.launch import ATTRIBUTES, WARP
from moec.targets.cuda.kernels.ordered_walk import (
    Walk,
    clear_counts,
    start_after_earlier_warps,
    walk_in_order,
    warps_for,
)


def why_not(experts: int) -> str | None:
    """The reason why :func:`capacity` cannot count so many experts, or None."""
    if warps_for(experts) == 0:
        return f"{experts} experts; the counts of one warp have to fit into shared memory"
    return None


def capacity(experts: int, limit: int, dtype: str = "float32") -> tirx.PrimFunc:
    """``(weights[T, k], experts[T, k], kept_weights[T, k], kept_experts[T, k])``; dropped pairs, and those without an
    expert, get id -1 and weight 0. Weights have ``dtype``, experts are int32; T may be 0."""
    E, warps = experts, warps_for(experts)
    threads = warps * WARP

    @T.prim_func
    def kernel(
        weights_handle: T.handle, experts_handle: T.handle, kept_weights_handle: T.handle, kept_experts_handle: T.handle
    ):
        T.func_attr(ATTRIBUTES)
        tokens = T.int32()
        slots = T.int32()
        weights = T.match_buffer(weights_handle, (tokens, slots), dtype)
        chosen = T.match_buffer(experts_handle, (tokens, slots), "int32")
        kept_weights = T.match_buffer(kept_weights_handle, (tokens, slots), dtype)
        kept_experts = T.match_buffer(kept_experts_handle, (tokens, slots), "int32")
        T.device_entry()
        _block = T.cta_id([1])
        thread = T.thread_id([threads])
        counts = T.alloc_shared((warps, E), "int32")
        totals = T.alloc_shared((E,), "int32")
        warp: T.let = thread // WARP
        lane: T.let = thread % WARP
        pairs: T.let = tokens * slots
        share: T.let = (pairs + (warps - 1)) // warps
        first: T.let = T.min(warp * share, pairs)
        end: T.let = T.min(first + share, pairs)
        walk = T.meta_var(Walk(E, warps, counts, warp, lane, first, end))

        @T.inline
        def drop(place, expert, rank):
            kept_weights[T.truncmod(place, tokens), T.truncdiv(place, tokens)] = T.cast(T.float32(0), dtype)
            kept_experts[T.truncmod(place, tokens), T.truncdiv(place, tokens)] = -1

        @T.inline
        def keep(place, expert, rank):
            if rank < limit:
                kept_weights[T.truncmod(place, tokens), T.truncdiv(place, tokens)] = weights[
                    T.truncmod(place, tokens), T.truncdiv(place, tokens)
                ]
                kept_experts[T.truncmod(place, tokens), T.truncdiv(place, tokens)] = expert

        for step in T.serial(T.ceildiv(end - first, WARP)):
            if first + step * WARP + lane < end:
                drop(first + step * WARP + lane, 0, 0)
        clear_counts(walk)
        walk_in_order(
            walk,
            lambda place: chosen[T.truncmod(place, tokens), T.truncdiv(place, tokens)],
            lambda place, expert, rank: None,
        )
        start_after_earlier_warps(walk, thread, totals)
        walk_in_order(walk, lambda place: chosen[T.truncmod(place, tokens), T.truncdiv(place, tokens)], keep)

    return kernel
