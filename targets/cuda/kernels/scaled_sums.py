"""Scaled sums for products of rows and matrices in fp8: the sum of each group of inputs is multiplied by its scales.

Rows have a scale for every group of inputs (:mod:`.fp8_rows`); columns of the matrix have one for every group, or one
for all inputs. Where 128 outputs share it, a thread loads one, or those of gate and up. A k-tile is a group: tensor
cores add up its products, and that sum, times both scales, is added to float32 sums. Adding up only one group on tensor
cores also preserves precision, because on Hopper they keep about 14 bits (DeepSeek-V3, arXiv 2412.19437, 3.3.2).

A lane has two rows of every 16 of its warp, and two columns of every 8. That is the layout of the accumulators.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from tvm.script import tirx as T

from moec.targets.cuda.hardware.architectures import multiplies_fp8
from moec.targets.cuda.kernels.mma_tile import MMA_COLUMNS, Tile, TileShape
from moec.targets.gpu.kernels.fp8_rows import GROUP, place_of_scale, why_not_packed, words_of
from moec.targets.gpu.kernels.grouped_problem import GroupedProblem

LANE_ROWS, LANE_COLUMNS = 2, 2
"""Rows and columns of a lane in the 16 rows and 8 columns of an instruction."""
SUMS = LANE_ROWS * LANE_COLUMNS


class Scaled(NamedTuple):
    """Registers of a thread: ``sums`` of a group [row steps, column steps, 4]; the input ``rows`` of these sums [row
    steps * 2], int32; the scales of the rows, and those of its columns (:func:`count_column_scales`)."""

    sums: Any
    rows: Any
    row_scales: Any
    column_scales: Any


def why_not_scaled(problem: GroupedProblem, architecture: str) -> str | None:
    """The reason why tensor cores cannot multiply rows in fp8 with the problem's matrix, or None."""
    stored = problem.stored
    if not multiplies_fp8(architecture):
        return f"the code is for {architecture}; products in fp8 need sm_89 or newer"
    if stored is None or not stored.is_e4m3 or stored.group not in (0, GROUP):
        actual = problem.matrix_dtype if stored is None else stored.name
        return f"a matrix in {actual}; expected fp8 with scales per column, or for groups of {GROUP} inputs"
    if problem.columns % LANE_COLUMNS:
        return f"{problem.columns} columns; a lane reads the scales of {LANE_COLUMNS} at once"
    return why_not_packed(problem.inner, GROUP)


def count_column_scales(problem: GroupedProblem, shape: TileShape) -> int:
    """The number of different scales of a lane's columns."""
    return problem.columns_per_output if problem.shares_scales else shape.column_steps * LANE_COLUMNS


def _column_scale(tile: Tile, j: Any, v: Any) -> Any:
    """The index of the scale of sum ``v`` of column step ``j``; steps of gate and up alternate."""
    if tile.problem.shares_scales:
        return j % tile.problem.columns_per_output
    return j * LANE_COLUMNS + v % LANE_COLUMNS


def row_in_tile(tile: Tile, row: Any) -> Any:
    """The index within the tile of the ``row``-th row of this lane."""
    return tile.warp_row + row // LANE_ROWS * tile.shape.step_rows + row % LANE_ROWS * 8 + tile.lane // 4


@T.inline
def find_rows(tile, scaled):
    """Look up the input rows of this lane's rows. Padding gets row 0, whose scale does not matter, since sums of
    padding are not stored."""
    for r in T.unroll(scaled.rows.shape[0]):
        pair: T.let = tile.operands.pair(tile.block, row_in_tile(tile, r))
        scaled.rows[r] = 0
        if pair >= 0:
            scaled.rows[r] = tile.operands.source(pair, tile.block, row_in_tile(tile, r))


@T.inline
def _read_shared_scales(tile, scaled, k_tile):
    """Load the scales of the first columns, of gate and up; a warp's columns are all of one block of scales."""
    for part in T.unroll(tile.problem.columns_per_output):
        column: T.let = tile.column_or_last(tile.first_column + tile.warp_column + part * MMA_COLUMNS)
        scaled.column_scales[part] = tile.operands.matrix.scale(tile.expert, column, k_tile * GROUP)


@T.inline
def _read_column_scales(tile, scaled, k_tile):
    stored, table = T.meta_var((tile.problem.stored, tile.operands.matrix.scales))
    experts, groups, columns = T.meta_var([int(size) for size in table.shape])
    pairs = T.decl_buffer((experts, groups, columns // LANE_COLUMNS, LANE_COLUMNS), table.dtype, data=table.data)
    found = T.alloc_local((LANE_COLUMNS,), table.dtype)
    group = T.meta_var(k_tile if stored.group > 0 else 0)
    for j in T.unroll(tile.shape.column_steps):
        # Columns beyond the last are read from the last ones; their sums are not stored.
        column: T.let = tile.first_column + tile.warp_column + j * MMA_COLUMNS + tile.lane % 4 * LANE_COLUMNS
        for v in T.vectorized(LANE_COLUMNS):
            found[v] = pairs[T.cast(tile.expert, "int64"), group, tile.column_or_last(column) // LANE_COLUMNS, v]
        for v in T.unroll(LANE_COLUMNS):
            scaled.column_scales[j * LANE_COLUMNS + v] = stored.scale_value(found[v])


@T.inline
def read_scales(tile, scaled, k_tile):
    """Start loading the scales of a k-tile; they arrive while it is multiplied."""
    scales = T.meta_var(words_of(tile.operands.rows, "float32"))
    for r in T.unroll(scaled.rows.shape[0]):
        scaled.row_scales[r] = scales[T.cast(scaled.rows[r], "int64"), place_of_scale(tile.problem.inner, k_tile)]
    if tile.problem.shares_scales:
        _read_shared_scales(tile, scaled, k_tile)
    else:
        _read_column_scales(tile, scaled, k_tile)


@T.inline
def add_scaled(tile, scaled, sums):
    """Add the sums of a k-tile, times the scales that were read last, to ``sums``."""
    for i in T.unroll(tile.shape.row_steps):
        for j in T.unroll(tile.shape.column_steps):
            for v in T.unroll(SUMS):
                scale: T.let = (
                    scaled.row_scales[i * LANE_ROWS + v // LANE_COLUMNS]
                    * scaled.column_scales[_column_scale(tile, j, v)]
                )
                sums[i, j, v] = sums[i, j, v] + scaled.sums[i, j, v] * scale
