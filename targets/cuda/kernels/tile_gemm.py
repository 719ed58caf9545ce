"""The blocks of threads of a product that compute one tile each: their place in the grid, and their shared memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from tvm import tirx
from tvm.script import tirx as T

from moec.targets.cuda.kernels.mma_tile import COLUMNS, Tile, TileShape
from moec.targets.cuda.kernels.shared_pool import SharedPool
from moec.targets.gpu.kernels.grouped_problem import GroupedProblem, KernelForm
from moec.targets.gpu.kernels.launch import WARP


class KTile(NamedTuple):
    """A k-tile in shared memory. ``row``, ``column``: numbers of type ``dtype`` in one of its rows and columns."""

    row: int
    column: int
    dtype: str


def tile_gemm(
    problem: GroupedProblem, shape: TileShape, k_tile: KTile, form: KernelForm, compute: Callable[..., Any]
) -> tirx.PrimFunc:
    """The kernel with the parameters of ``form``, whose blocks of threads run the macro ``compute(tile)`` where there
    are rows."""
    tiles = -(-problem.columns // COLUMNS)
    row_lines, column_lines = shape.rows // shape.row_warps, COLUMNS // shape.column_warps

    @T.inline
    def body(operands):
        T.device_entry()
        index = T.cta_id([T.max(operands.blocks, 1) * tiles])
        thread = T.thread_id([shape.threads])
        pool = SharedPool()
        row_tiles = pool.alloc((shape.stages, shape.rows, k_tile.row), k_tile.dtype, align=128)
        column_tiles = pool.alloc((shape.stages, COLUMNS, k_tile.column), k_tile.dtype, align=128)
        pool.commit_named(row_tiles=row_tiles, column_tiles=column_tiles)
        # All tiles of a block of rows come first, then those of the next block, which often has the same expert.
        block: T.let = index // tiles
        first_column: T.let = index % tiles * COLUMNS
        lane: T.let = thread % WARP
        warp_row: T.let = thread // WARP // shape.column_warps * row_lines
        warp_column: T.let = thread // WARP % shape.column_warps * column_lines
        if operands.is_used(block):
            expert: T.let = operands.expert(block)
            tile = T.meta_var(
                Tile(
                    operands=operands,
                    shape=shape,
                    block=block,
                    expert=expert,
                    first_column=first_column,
                    thread=thread,
                    lane=lane,
                    warp_row=warp_row,
                    warp_column=warp_column,
                    row_tiles=row_tiles,
                    column_tiles=column_tiles,
                )
            )
            compute(tile)

    return form(problem, body)
