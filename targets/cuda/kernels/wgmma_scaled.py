"""Consumers of k-tiles in fp8: both multiply the same stage, each its own part of one tile.

The sums of each k-tile are scaled and added to float32 sums in registers (:mod:`.scaled_sums`). Tensor cores would be
idle during that time if only one warpgroup multiplied. So consumers do not take turns: while one adds up, the other
multiplies, as in DeepGEMM (DeepSeek, 2025).
"""

from __future__ import annotations

from tvm.script import tirx as T

from moec.targets.cuda.kernels.mma_store import store
from moec.targets.cuda.kernels.mma_tile import MMA_ROWS, MMA_STEPS, Tile
from moec.targets.cuda.kernels.persistent_tiles import WARPGROUP, for_each_tile
from moec.targets.cuda.kernels.scaled_sums import (
    LANE_ROWS,
    SUMS,
    Scaled,
    add_scaled,
    count_column_scales,
    find_rows,
    read_scales,
)
from moec.targets.cuda.kernels.tile_ring import DEPTH_STEP, EIGHT_ROWS, SWIZZLE, RingPosition
from moec.targets.cuda.kernels.wgmma_ring import all_sums, await_products, give_back, multiply_instruction
from moec.targets.cuda.kernels.wgmma_tile import GROUP_ROWS
from moec.targets.gpu.kernels.launch import WARP


@T.inline
def _multiply_k_tile(ring, tile, position, sums):
    """Set ``sums`` to the products of a k-tile, for this consumer's rows and columns."""
    instruction = T.meta_var(multiply_instruction(ring.tile.instruction_columns, tile.problem.dtype))
    left = T.local_scalar("uint64")
    right = T.local_scalar("uint64")
    first_row: T.let = tile.warp_row // GROUP_ROWS * GROUP_ROWS
    T.cuda.wgmma.encode_matrix_descriptor(
        T.address_of(left), ring.row_tiles.ptr_to([position.stage, first_row, 0]), 1, EIGHT_ROWS, SWIZZLE
    )
    T.cuda.wgmma.encode_matrix_descriptor(
        T.address_of(right), ring.column_tiles.ptr_to([position.stage, tile.warp_column, 0]), 1, EIGHT_ROWS, SWIZZLE
    )
    T.ptx.wgmma.fence.sync.aligned()
    for step in T.unroll(MMA_STEPS):
        inside = T.meta_var(T.cast(step * DEPTH_STEP, "uint64"))
        T.ptx[instruction](*all_sums(sums, 0), left + inside, right + inside, step != 0, 1, 1)
    T.ptx.wgmma.commit_group.sync.aligned()
    await_products(sums, 0)


@T.inline
def consume_together(operands, epilogue, tile, ring, place, thread):
    """Compute one consumer's part of all tiles of this block of threads; its warps are four of the eight."""
    shape = T.meta_var(tile.consumer_shape)
    warp: T.let = thread // WARP - WARPGROUP // WARP
    warp_row: T.let = T.truncmod(warp, shape.row_warps) * MMA_ROWS
    warp_column: T.let = T.truncdiv(warp, shape.row_warps) * tile.instruction_columns
    position = T.meta_var(RingPosition(tile.stages, 0))
    sums = T.alloc_local((1, shape.column_steps, SUMS), "float32")
    group_sums = T.alloc_local((1, shape.column_steps, SUMS), "float32")
    sum_rows = T.alloc_local((LANE_ROWS,), "int32")
    row_scales = T.alloc_local((LANE_ROWS,), "float32")
    column_scales = T.alloc_local((count_column_scales(operands.problem, shape),), "float32")
    scaled = T.meta_var(Scaled(group_sums, sum_rows, row_scales, column_scales))

    @T.inline
    def consume(turn):
        lane, block, expert, first = T.meta_var((thread % WARP, turn.block, turn.expert, turn.first_column))
        of_thread = T.meta_var(
            Tile(operands, shape, block, expert, first, thread, lane, warp_row, warp_column, None, None)
        )
        for j in T.unroll(shape.column_steps):
            for v in T.unroll(SUMS):
                sums[0, j, v] = T.float32(0)
        find_rows(of_thread, scaled)
        for k_tile in T.serial(of_thread.k_tiles):
            read_scales(of_thread, scaled, k_tile)
            ring.full.wait(position.stage, position.phase)
            _multiply_k_tile(ring, of_thread, position, group_sums)
            give_back(ring, position.stage, thread)
            position.advance()
            add_scaled(of_thread, scaled, sums)
        if turn.stores:
            store(of_thread, epilogue, sums)

    for_each_tile(operands, tile, place, consume)
