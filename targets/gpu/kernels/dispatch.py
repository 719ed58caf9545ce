"""Dispatch: sort the (token, slot) pairs by expert and pad each expert's rows to whole blocks.

It is a stable counting sort in one block of threads, see :mod:`.ordered_walk`, so the result is unique. The host does
not wait for sizes: arrays have the length of an upper bound, and ``block_count`` says how much of them is in use.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from moec.targets.gpu.kernels.instructions import from_lane, from_lower_lane, sync_block
from moec.targets.gpu.kernels.launch import EARLY_ATTRIBUTES, WARP
from moec.targets.gpu.kernels.ordered_walk import (
    clear_counts,
    start_after_earlier_warps,
    start_walk,
    walk_in_order,
    warps_for,
)
from moec.targets.tvm.kernels.kernel import Kernel
from moec.targets.tvm.text.steps import begin_step

PADDING = -1
"""The value in ``sorted_pairs`` for rows of a block that are padding."""


def why_not(experts: int) -> str | None:
    """The reason why :func:`dispatch` cannot sort by ``experts`` experts, or None."""
    if warps_for(experts) == 0:
        return f"{experts} experts; the counts of one warp have to fit into shared memory"
    return None


def most_blocks(experts: int, pairs: Any, block_rows: int) -> Any:
    """The largest possible number of blocks, at least 1. ``pairs``: a number or an int64 expression."""
    if isinstance(pairs, int):
        return max(min(pairs, (pairs + experts * (block_rows - 1)) // block_rows), 1)
    padded = (pairs + T.int64(experts * (block_rows - 1))) // T.int64(block_rows)
    return T.max(T.min(pairs, padded), T.int64(1))


@T.inline
def scan_blocks(experts, block_rows, lane, totals, first_block):
    """Set ``first_block[e]`` to the number of blocks of all experts before e, and ``first_block[E]`` to the number of
    all blocks. One warp does that, by prefix sums over 32 experts at a time."""
    blocks = T.alloc_local((1,), "int32")
    carry = T.alloc_local((1,), "int32")
    carry[0] = 0
    for step in T.serial(-(-experts // WARP)):
        expert: T.let = step * WARP + lane
        blocks[0] = 0
        if expert < experts:
            blocks[0] = (totals[expert] + (block_rows - 1)) // block_rows
        own: T.let = blocks[0]
        for level in T.unroll(5):
            lower: T.let = from_lower_lane(blocks[0], 1 << level)
            if lane >= (1 << level):
                blocks[0] = blocks[0] + lower
        if expert < experts:
            first_block[expert] = carry[0] + blocks[0] - own
        carry[0] = carry[0] + from_lane(blocks[0], WARP - 1)
    if lane == 0:
        first_block[experts] = carry[0]


@T.inline
def describe_blocks(experts, threads, thread, first_block, block_experts, block_count):
    """Store the expert of every block, and the number of blocks."""
    for step in T.serial(-(-experts // threads)):
        expert: T.let = step * threads + thread
        if expert < experts:
            for block in T.serial(first_block[expert + 1] - first_block[expert]):
                block_experts[first_block[expert] + block] = expert
    if thread == 0:
        block_count[0] = first_block[experts]


@T.inline
def _fill(threads, thread, places, sorted_pairs):
    """Fill ``sorted_pairs`` with padding, which pairs overwrite later."""
    for step in T.serial(T.ceildiv(places, threads)):
        if step * threads + thread < places:
            sorted_pairs[step * threads + thread] = PADDING


def expert_of(chosen: Any, pair: Any) -> Any:
    """The expert of a pair, ``t * k + slot``, in ``chosen`` [T, k]."""
    slots = chosen.shape[1]
    return chosen[T.truncdiv(pair, slots), T.truncmod(pair, slots)]


def dispatch(experts: int, block_rows: int) -> tirx.PrimFunc:
    """The kernel ``(experts[T, k], sorted_pairs[P], block_experts[B], block_count[1])``, all int32.

    Each of the first ``block_count`` blocks covers ``block_rows`` places of ``sorted_pairs`` and belongs to expert
    ``block_experts[b]``. It holds pairs ``t * k + slot`` of that expert in their order, followed by :data:`PADDING`.
    Places after the last block are not written. Ids outside [0, E) belong to no expert. T may be 0. B is at least
    :func:`most_blocks`, and P is ``B * block_rows``.
    """
    warps = warps_for(experts)

    @T.prim_func
    def kernel(experts_handle: T.handle, pairs_handle: T.handle, blocks_handle: T.handle, count_handle: T.handle):
        T.func_attr(EARLY_ATTRIBUTES)
        tokens = T.int32()
        slots = T.int32()
        P = T.int32()
        B = T.int32()
        chosen = T.match_buffer(experts_handle, (tokens, slots), "int32")
        sorted_pairs = T.match_buffer(pairs_handle, (P,), "int32")
        block_experts = T.match_buffer(blocks_handle, (B,), "int32")
        block_count = T.match_buffer(count_handle, (1,), "int32")
        T.device_entry()
        _block = T.cta_id([1])
        thread = T.thread_id([warps * WARP])
        counts = T.alloc_shared((warps, experts), "int32")
        totals = T.alloc_shared((experts,), "int32")
        first_block = T.alloc_shared((experts + 1,), "int32")

        @T.inline
        def sort(walk):
            begin_step("pairs of each expert, counted")
            clear_counts(walk)
            walk_in_order(walk, lambda pair: expert_of(chosen, pair), lambda pair, expert, rank: None)
            start_after_earlier_warps(walk, thread, totals)
            begin_step("the first block of each expert")
            if walk.warp == 0:
                scan_blocks(experts, block_rows, walk.lane, totals, first_block)
            sync_block()
            describe_blocks(experts, warps * WARP, thread, first_block, block_experts, block_count)
            _fill(warps * WARP, thread, first_block[experts] * block_rows, sorted_pairs)
            sync_block()
            begin_step("pairs, in order, at their places")
            walk_in_order(walk, lambda pair: expert_of(chosen, pair), place)

        @T.inline
        def place(pair, expert, rank):
            sorted_pairs[first_block[expert] * block_rows + rank] = pair

        start_walk(experts, warps, thread, tokens * slots, counts, sort)

    return kernel


DISPATCH = Kernel(
    "dispatch",
    "pairs sorted by expert, padded to blocks",
    dispatch,
    how=lambda experts, _: f"stable counting sort into {experts} experts by one block of threads, without atomics",
    why_not=lambda experts, _: why_not(experts),
    # Two walks: one counts the pairs, the other one places them.
)
