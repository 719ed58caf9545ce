"""Grouped matrix product on the tensor cores of compute capability 9.0a: floats of 16 or 8 bits, float32 sums.

The grid has as many blocks of threads as the GPU has multiprocessors, and each computes several tiles, one after
another (:mod:`.persistent_tiles`). One of a block's three warpgroups is the producer, which copies k-tiles into a ring
of stages in shared memory and runs ahead beyond the end of a tile (:mod:`.tile_ring`). The other two are consumers and
take turns: each computes every other tile by ``wgmma``, with operands in shared memory and accumulators in registers.
While one consumer is in its epilogue, the other multiplies; CUTLASS calls this schedule ping-pong. In fp8 both
consumers share a tile (:mod:`.wgmma_scaled`). A block of 128 rows takes two instructions along its rows, and one if it
has at most 64 rows; the rest of it is padding.

If experts have rows for several blocks, two blocks of threads form a cluster. Each copies half of the matrix to both
(multicast), so only half as many of its bytes are read from the L2 cache.

Inputs beyond the last are zero in both operands. Columns beyond the last are not stored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from moec.targets.cuda.kernels.mma_store import store
from moec.targets.cuda.kernels.mma_tile import MMA_ROWS, Tile, k_tile_depth
from moec.targets.cuda.kernels.persistent_gemm import persistent_gemm, why_not_in_tiles
from moec.targets.cuda.kernels.persistent_tiles import WARPGROUP, for_each_tile
from moec.targets.cuda.kernels.scaled_sums import why_not_scaled
from moec.targets.cuda.kernels.tile_ring import RingPosition, meet_cluster, produce
from moec.targets.cuda.kernels.wgmma_ring import (
    ELEMENTS,
    clear_sums,
    consume_tile,
    new_ring,
    start_ring,
    wait_for_turn,
)
from moec.targets.cuda.kernels.wgmma_scaled import consume_together
from moec.targets.cuda.kernels.wgmma_tile import CONSUMERS, GROUP_ROWS, HEIGHTS, wgmma_tile
from moec.targets.gpu.kernels.grouped_problem import GroupedProblem, KernelForm, grouped_kernel
from moec.targets.gpu.kernels.launch import WARP, one_block_is_enough
from moec.targets.gpu.kernels.tiled_kernels import tiled_kernels

ARCHITECTURE = "sm_90a"
"""The only architecture that has wgmma."""


def why_not(problem: GroupedProblem, architecture: str) -> str | None:
    """The reason why :func:`grouped_gemm_wgmma` cannot compute the problem, or None."""
    reason = _why_not_multiplied(problem, architecture)
    return why_not_in_tiles(problem, HEIGHTS) if reason is None else reason


def _why_not_multiplied(problem: GroupedProblem, architecture: str) -> str | None:
    """The reason why the instruction cannot multiply these types, or None."""
    if architecture != ARCHITECTURE:
        return f"the code is for {architecture}; wgmma needs {ARCHITECTURE}"
    if problem.in_fp8:
        return why_not_scaled(problem, architecture)
    if problem.dtype not in ELEMENTS:
        return f"{problem.dtype} rows; expected float16 or bfloat16"
    if problem.stored is None and problem.matrix_dtype != problem.dtype:
        return f"{problem.dtype} rows and a {problem.matrix_dtype} matrix; the instruction takes one type for both"
    return None


def _how(problem: GroupedProblem) -> str:
    """The kernel's way to compute the problem, in words, for reports."""
    tile = wgmma_tile(problem)
    matrix = "decoded by the producer" if problem.decodes else "by TMA"
    pairs = ", shared by clusters of two blocks (multicast)" if tile.cluster > 1 else ""
    consumers = "share a tile" if tile.together else "take turns (ping-pong)"
    return f"tensor cores (wgmma), the matrix {matrix}{pairs}, persistent, two consumers that {consumers}"


@T.inline
def _consume_tile(ring, tile, position, consumer, sums):
    """Add the products of a tile to ``sums``. Where a block has at most 64 rows, only these are multiplied, in a loop
    of its own: ptxas serialises products that depend on a condition within a loop."""
    dtype, thread, steps = T.meta_var((tile.problem.dtype, tile.thread, ring.tile.row_steps))
    if steps == 1:
        consume_tile(ring, dtype, tile.k_tiles, 1, position, consumer, thread, sums)
    else:
        if tile.operands.pair(tile.block, GROUP_ROWS) < 0:
            consume_tile(ring, dtype, tile.k_tiles, 1, position, consumer, thread, sums)
        else:
            consume_tile(ring, dtype, tile.k_tiles, steps, position, consumer, thread, sums)


@T.inline
def _consume(operands, epilogue, tile, ring, place, thread):
    consumer: T.let = thread // WARPGROUP - 1
    warp_row: T.let = thread % WARPGROUP // WARP * MMA_ROWS
    position = T.meta_var(RingPosition(tile.stages, 0))
    tiles = T.alloc_local((1,), "int32")
    tiles[0] = 0

    @T.inline
    def consume(turn):
        if T.truncmod(tiles[0], CONSUMERS) == consumer:
            shape, lane = T.meta_var((tile.consumer_shape, thread % WARP))
            block, expert, first = T.meta_var((turn.block, turn.expert, turn.first_column))
            of_thread = T.meta_var(Tile(operands, shape, block, expert, first, thread, lane, warp_row, 0, None, None))
            sums = T.alloc_local((tile.row_steps, tile.consumer_shape.column_steps, 4), "float32")
            clear_sums(sums)
            position.go_to(tiles[0] * of_thread.k_tiles)
            wait_for_turn(ring, consumer, T.truncdiv(tiles[0], CONSUMERS))
            _consume_tile(ring, of_thread, position, consumer, sums)
            if turn.stores:
                store(of_thread, epilogue, sums)
        tiles[0] = tiles[0] + 1

    for_each_tile(operands, tile, place, consume)


@T.inline
def _compute(operands, epilogue, tile, maps, place, thread):
    ring = T.meta_var(new_ring(tile, operands.problem, maps, place.rank))
    start_ring(ring)
    with one_block_is_enough():
        if thread < WARPGROUP:
            T.ptx["setmaxnreg.dec.sync.aligned.u32"](ring.registers[0])
            produce(operands, tile, ring, place, thread)
        else:
            T.ptx["setmaxnreg.inc.sync.aligned.u32"](ring.registers[1])
            if tile.together:
                consume_together(operands, epilogue, tile, ring, place, thread)
            else:
                _consume(operands, epilogue, tile, ring, place, thread)
    if tile.cluster > 1:
        meet_cluster(tile)


def grouped_gemm_wgmma(
    problem: GroupedProblem, epilogue: Callable[..., Any], form: KernelForm = grouped_kernel
) -> tirx.PrimFunc:
    """The kernel with the parameters of :func:`~moec.targets.gpu.kernels.grouped_problem.grouped_kernel`, or of
    another ``form``. ``epilogue``: from float32 sums to an output, ``f(gate, up)`` if gated, else ``f(sum)``."""
    tile = wgmma_tile(problem)

    @T.inline
    def compute(operands, maps, place, thread):
        _compute(operands, epilogue, tile, maps, place, thread)

    return persistent_gemm(problem, tile, form, compute)


def _tile(problem: GroupedProblem) -> tuple[int, int, int]:
    tile = wgmma_tile(problem)
    return tile.rows, tile.columns, k_tile_depth(problem.dtype)


GROUPED_GEMM_WGMMA, GEMM_WGMMA = tiled_kernels(
    "gemm_wgmma",
    grouped_gemm_wgmma,
    how=_how,
    why_not=why_not,
    tile=_tile,
)
