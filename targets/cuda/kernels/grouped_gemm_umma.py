"""Grouped matrix product on the tensor cores of data-centre Blackwell (10.0a, 10.3a): 16-bit floats, float32 sums.

Each block of threads, or each pair of them (:mod:`.umma_tile`), computes several tiles (:mod:`.persistent_tiles`). A
block has three parts. The producer, a warpgroup, copies or decodes k-tiles into a ring of stages in shared memory
(:mod:`.umma_producer`). One warp, of a pair that of the first block, multiplies them by ``tcgen05.mma``, which CUTLASS
calls UMMA: both operands are in shared memory, and sums in tensor memory. Four warps take the sums of the tile before
through the epilogue (:mod:`.umma_sums`).

Inputs beyond the last are zero in both operands. Columns beyond the last are not stored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from moec.targets.cuda.kernels.mma_store import store
from moec.targets.cuda.kernels.mma_tile import Tile, k_tile_depth
from moec.targets.cuda.kernels.persistent_gemm import persistent_gemm, why_not_in_tiles
from moec.targets.cuda.kernels.persistent_tiles import WARPGROUP, for_each_tile
from moec.targets.cuda.kernels.tile_ring import RingPosition
from moec.targets.cuda.kernels.umma_producer import produce
from moec.targets.cuda.kernels.umma_sums import (
    AFTER_SYNC,
    LANE,
    finish_ring,
    multiply_tile,
    new_ring,
    start_ring,
    take_part,
)
from moec.targets.cuda.kernels.umma_tile import ACCUMULATORS, HEIGHTS, is_half, sums_of_warp, umma_tile
from moec.targets.gpu.kernels.grouped_problem import GroupedProblem, KernelForm, grouped_kernel
from moec.targets.gpu.kernels.launch import WARP, one_block_is_enough
from moec.targets.gpu.kernels.tiled_kernels import tiled_kernels

ARCHITECTURES = ("sm_100a", "sm_103a")
"""The architectures that have tcgen05."""
_DTYPES = ("float16", "bfloat16")


def why_not(problem: GroupedProblem, architecture: str) -> str | None:
    """The reason why :func:`grouped_gemm_umma` cannot compute the problem, or None."""
    if architecture not in ARCHITECTURES:
        return f"the code is for {architecture}; tcgen05 needs {' or '.join(ARCHITECTURES)}"
    if problem.dtype not in _DTYPES:
        return f"{problem.dtype} rows; expected float16 or bfloat16"
    if problem.stored is None and problem.matrix_dtype != problem.dtype:
        return f"{problem.dtype} rows and a {problem.matrix_dtype} matrix; the instruction takes one type for both"
    return why_not_in_tiles(problem, HEIGHTS)


def _how(problem: GroupedProblem) -> str:
    """The kernel's way to compute the problem, in words, for reports."""
    matrix = "decoded by the producer" if problem.decodes else "by TMA"
    pairs = ", in pairs of blocks (cta_group::2)" if umma_tile(problem).cluster > 1 else ""
    return f"tensor cores (tcgen05){pairs}, the matrix {matrix}, persistent, sums of two tiles in tensor memory"


@T.inline
def _multiply(operands, tile, ring, memory, place, thread):
    position = T.meta_var(RingPosition(tile.stages, 0))
    accumulator = T.meta_var(RingPosition(ACCUMULATORS, 0))

    @T.inline
    def multiply(turn):
        whole, expert, first = T.meta_var((tile.producer_shape, turn.expert, turn.first_column))
        of_thread = T.meta_var(Tile(operands, whole, turn.block, expert, first, thread, 0, 0, 0, None, None))
        half = T.meta_var(is_half(tile, operands, turn.block))
        multiply_tile(ring, of_thread, half, memory, position, accumulator)

    if ring.rank == 0:
        for_each_tile(operands, tile, place, multiply)


@T.inline
def _store(operands, epilogue, tile, ring, memory, place, thread):
    """Take the sums of all tiles of this block of threads through the epilogue, a part of their columns at a time."""
    warp: T.let = thread % WARPGROUP // WARP
    accumulator = T.meta_var(RingPosition(ACCUMULATORS, 0))

    @T.inline
    def store_part(turn, row, first, column, last):
        shape, lane = T.meta_var((tile.part_shape, thread % WARP))
        part = T.meta_var(Tile(operands, shape, turn.block, turn.expert, first, thread, lane, row, 0, None, None))
        sums = T.alloc_local((shape.row_steps, shape.column_steps, 4), "float32")
        address: T.let = memory + T.cast(
            warp * (WARP * LANE) + accumulator.stage * tile.accumulator_columns + column, "uint32"
        )
        take_part(ring, thread, sums, address, accumulator, last)
        if first < operands.problem.columns:
            store(part, epilogue, sums)

    @T.inline
    def store_tile(turn):
        place, parts = T.meta_var(sums_of_warp(tile, is_half(tile, operands, turn.block), ring.rank, warp))
        ring.computed.wait(accumulator.stage, accumulator.phase)
        T.ptx[AFTER_SYNC]()
        for part in T.serial(parts, unroll=False):
            column = T.meta_var(part * tile.part_columns)
            store_part(turn, place.row, turn.first_column + place.column + column, column, part == parts - 1)
        accumulator.advance()

    for_each_tile(operands, tile, place, store_tile)


@T.inline
def _compute(operands, epilogue, tile, maps, place, thread):
    ring = T.meta_var(new_ring(tile, operands.problem, maps, place.rank))
    warp: T.let = thread // WARP
    start_ring(ring, warp)
    with one_block_is_enough():
        memory: T.let = ring.address[0]
        if thread < WARPGROUP:
            produce(operands, tile, ring, place, thread)
        elif thread < 2 * WARPGROUP:
            _store(operands, epilogue, tile, ring, memory, place, thread)
        else:
            _multiply(operands, tile, ring, memory, place, thread)
    finish_ring(ring, warp)


def grouped_gemm_umma(
    problem: GroupedProblem, epilogue: Callable[..., Any], form: KernelForm = grouped_kernel
) -> tirx.PrimFunc:
    """The kernel with the parameters of :func:`~moec.targets.gpu.kernels.grouped_problem.grouped_kernel`, or of
    another ``form``. ``epilogue``: from float32 sums to an output, ``f(gate, up)`` if gated, else ``f(sum)``."""
    tile = umma_tile(problem)

    @T.inline
    def compute(operands, maps, place, thread):
        _compute(operands, epilogue, tile, maps, place, thread)

    return persistent_gemm(problem, tile, form, compute)


def _tile(problem: GroupedProblem) -> tuple[int, int, int]:
    return problem.block_rows, umma_tile(problem).columns, k_tile_depth(problem.dtype)


GROUPED_GEMM_UMMA, GEMM_UMMA = tiled_kernels("gemm_umma", grouped_gemm_umma, how=_how, why_not=why_not, tile=_tile)
