"""Dispatch of many pairs in three launches with many blocks of threads. The result is exactly that of :mod:`.dispatch`.

The pairs are divided into chunks, and a block of threads walks each chunk as in :mod:`.ordered_walk`. A chunk is the
number of pairs that a block handles in one step, or a multiple of it that limits the number of chunks:

1. :func:`count_pairs` counts the pairs of every expert in each chunk.
2. :func:`place_chunks` adds up the counts, in one block of threads. That gives the blocks of rows of each expert, and
   the place among its rows where each chunk's pairs begin. The rest of its last block is filled with padding.
3. :func:`scatter_pairs` stores the pairs of each chunk at these places, in their order.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from moec.targets.gpu.kernels.dispatch import PADDING, describe_blocks, expert_of, scan_blocks, why_not
from moec.targets.gpu.kernels.instructions import sync_block
from moec.targets.gpu.kernels.launch import EARLY_ATTRIBUTES, WARP, blocks_for
from moec.targets.gpu.kernels.ordered_walk import (
    clear_counts,
    start_after_earlier_warps,
    start_walk,
    walk_in_order,
    warps_for,
)
from moec.targets.tvm.kernels.kernel import Kernel

_MOST_WARPS = 16
_STEP_PAIRS = _MOST_WARPS * WARP
MOST_CHUNKS = 64
"""The largest number of chunks, since one block of threads adds them up one after another."""
_PLACING_THREADS = 512


def chunk_pairs(pairs: Any) -> Any:
    """The number of pairs of a chunk. ``pairs``: of all chunks, a number or an expression, as is the result."""
    if isinstance(pairs, int):
        return _STEP_PAIRS * max(-(-pairs // (_STEP_PAIRS * MOST_CHUNKS)), 1)
    return blocks_for(pairs, _STEP_PAIRS * MOST_CHUNKS) * _STEP_PAIRS


def chunks_for(pairs: Any) -> Any:
    """The number of chunks, at least one. ``pairs``: a number or an expression."""
    if isinstance(pairs, int):
        return max(-(-pairs // chunk_pairs(pairs)), 1)
    return blocks_for(pairs, chunk_pairs(pairs))


def _warps(experts: int) -> int:
    """The number of warps of the block that walks a chunk."""
    return min(_MOST_WARPS, warps_for(experts))


@T.inline
def _count_chunk(chosen, pair_counts, chunk, thread, totals, first, walk):
    """Count the pairs of the chunk that begins at pair ``first``: ``totals`` [E] of the chunk, which are also stored in
    ``pair_counts`` unless that is None, and in the walk's counts those of all earlier warps."""
    pair_at = T.meta_var(lambda place: expert_of(chosen, first + place))
    clear_counts(walk)
    walk_in_order(walk, pair_at, lambda place, expert, rank: None)
    start_after_earlier_warps(walk, thread, totals)
    if pair_counts is not None:
        threads = T.meta_var(walk.warps * WARP)
        for step in T.serial(-(-walk.experts // threads)):
            expert: T.let = step * threads + thread
            if expert < walk.experts:
                pair_counts[chunk, expert] = totals[expert]


@T.inline
def _scatter_chunk(chosen, starts, sorted_pairs, chunk, thread, totals, first, walk):
    pair_at = T.meta_var(lambda place: expert_of(chosen, first + place))

    @T.inline
    def put(place, expert, rank):
        sorted_pairs[starts[chunk, expert] + rank] = first + place

    _count_chunk(chosen, None, chunk, thread, totals, first, walk)
    walk_in_order(walk, pair_at, put)


@T.inline
def _walk_chunk(experts, pairs, chunk, thread, body):
    """Emit ``body(totals, first, walk)`` for the pairs of a chunk, which begins at pair ``first``."""
    warps = T.meta_var(_warps(experts))
    counts = T.alloc_shared((warps, experts), "int32")
    totals = T.alloc_shared((experts,), "int32")
    first: T.let = chunk * chunk_pairs(pairs)
    length: T.let = T.min(pairs - first, chunk_pairs(pairs))
    start_walk(experts, warps, thread, length, counts, functools.partial(body, totals, first))


def count_pairs(experts: int) -> tirx.PrimFunc:
    """The kernel ``(experts[T, k], pair_counts[C, E])``, int32. C is :func:`chunks_for` the pairs. Ids outside [0, E)
    are not counted."""

    @T.prim_func
    def kernel(experts_handle: T.handle, counts_handle: T.handle):
        T.func_attr(EARLY_ATTRIBUTES)
        tokens = T.int32()
        slots = T.int32()
        C = T.int32()
        chosen = T.match_buffer(experts_handle, (tokens, slots), "int32")
        pair_counts = T.match_buffer(counts_handle, (C, experts), "int32")
        T.device_entry()
        chunk = T.cta_id([chunks_for(tokens * slots)])
        thread = T.thread_id([_warps(experts) * WARP])
        body = T.meta_var(functools.partial(_count_chunk, chosen, pair_counts, chunk, thread))
        _walk_chunk(experts, tokens * slots, chunk, thread, body)

    return kernel


@T.inline
def _add_chunks(experts, chunks, thread, pair_counts, totals):
    """Set ``totals[e]`` to the number of pairs of expert e in all chunks."""
    running = T.alloc_local((1,), "int32")
    for step in T.serial(-(-experts // _PLACING_THREADS)):
        expert: T.let = step * _PLACING_THREADS + thread
        if expert < experts:
            running[0] = 0
            for chunk in T.serial(chunks):
                running[0] = running[0] + pair_counts[chunk, expert]
            totals[expert] = running[0]


@T.inline
def _start_chunks(experts, block_rows, chunks, thread, pair_counts, first_block, starts, sorted_pairs):
    """Set ``starts`` to the places where the pairs of each chunk begin among the rows of their expert, and fill the
    rest of the expert's last block with padding."""
    running = T.alloc_local((1,), "int32")
    for step in T.serial(-(-experts // _PLACING_THREADS)):
        expert: T.let = step * _PLACING_THREADS + thread
        if expert < experts:
            running[0] = first_block[expert] * block_rows
            for chunk in T.serial(chunks):
                starts[chunk, expert] = running[0]
                running[0] = running[0] + pair_counts[chunk, expert]
            for row in T.serial(first_block[expert + 1] * block_rows - running[0]):
                sorted_pairs[running[0] + row] = PADDING


def place_chunks(experts: int, block_rows: int) -> tirx.PrimFunc:
    """The kernel ``(experts[T, k], pair_counts[C, E], starts[C, E], sorted_pairs[P], block_experts[B],
    block_count[1])``, int32. Of ``experts`` only the sizes are used. Of ``sorted_pairs`` only padding is written."""

    @T.prim_func
    def kernel(
        experts_handle: T.handle,
        counts_handle: T.handle,
        starts_handle: T.handle,
        pairs_handle: T.handle,
        blocks_handle: T.handle,
        count_handle: T.handle,
    ):
        T.func_attr(EARLY_ATTRIBUTES)
        tokens = T.int32()
        slots = T.int32()
        C = T.int32()
        P = T.int32()
        B = T.int32()
        _chosen = T.match_buffer(experts_handle, (tokens, slots), "int32")
        pair_counts = T.match_buffer(counts_handle, (C, experts), "int32")
        starts = T.match_buffer(starts_handle, (C, experts), "int32")
        sorted_pairs = T.match_buffer(pairs_handle, (P,), "int32")
        block_experts = T.match_buffer(blocks_handle, (B,), "int32")
        block_count = T.match_buffer(count_handle, (1,), "int32")
        T.device_entry()
        _block = T.cta_id([1])
        thread = T.thread_id([_PLACING_THREADS])
        totals = T.alloc_shared((experts,), "int32")
        first_block = T.alloc_shared((experts + 1,), "int32")
        chunks: T.let = chunks_for(tokens * slots)
        _add_chunks(experts, chunks, thread, pair_counts, totals)
        sync_block()
        if thread < WARP:
            scan_blocks(experts, block_rows, thread, totals, first_block)
        sync_block()
        describe_blocks(experts, _PLACING_THREADS, thread, first_block, block_experts, block_count)
        _start_chunks(experts, block_rows, chunks, thread, pair_counts, first_block, starts, sorted_pairs)

    return kernel


def scatter_pairs(experts: int) -> tirx.PrimFunc:
    """The kernel ``(experts[T, k], starts[C, E], sorted_pairs[P])``, int32, which stores every pair that has an expert
    at its place."""

    @T.prim_func
    def kernel(experts_handle: T.handle, starts_handle: T.handle, pairs_handle: T.handle):
        T.func_attr(EARLY_ATTRIBUTES)
        tokens = T.int32()
        slots = T.int32()
        C = T.int32()
        P = T.int32()
        chosen = T.match_buffer(experts_handle, (tokens, slots), "int32")
        starts = T.match_buffer(starts_handle, (C, experts), "int32")
        sorted_pairs = T.match_buffer(pairs_handle, (P,), "int32")
        T.device_entry()
        chunk = T.cta_id([chunks_for(tokens * slots)])
        thread = T.thread_id([_warps(experts) * WARP])
        body = T.meta_var(functools.partial(_scatter_chunk, chosen, starts, sorted_pairs, chunk, thread))
        _walk_chunk(experts, tokens * slots, chunk, thread, body)

    return kernel


def _kernel(name: str, computes: str, build: Callable[..., tirx.PrimFunc], how: str) -> Kernel:
    return Kernel(name, computes, build, lambda experts, _: how, lambda experts, _: why_not(experts))


COUNT_PAIRS = _kernel(
    "count_pairs",
    "pair_counts[chunk, e]",
    count_pairs,
    "one block of threads per chunk",
)
PLACE_CHUNKS = _kernel(
    "place_chunks",
    "starts[chunk, e] in the order of experts, then chunks, padded to blocks",
    place_chunks,
    "one block of threads adds up the chunks",
)
SCATTER_PAIRS = _kernel(
    "scatter_pairs",
    "pairs sorted by expert",
    scatter_pairs,
    "one block of threads per chunk, pairs in their order, without atomics",
)
