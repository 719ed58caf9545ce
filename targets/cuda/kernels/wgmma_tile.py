"""The tile of a warpgroup that multiplies with wgmma, and how a block of threads shares its time between tiles.

The grid is as large as the GPU has multiprocessors, and each block of threads computes several tiles, one after
another: those whose number is its own and those a grid further on. Two blocks of threads may be a *cluster*: they
compute the tiles of two neighbouring blocks of rows, which mostly belong to one expert, and each brings half of its
matrix to both. Numbers follow one another so that tiles computed at
the same time read the same memory, which then comes from the L2 cache: a *band* of neighbouring blocks of rows, which
belong to one expert or few, column by column, then the next band.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

from tvm.script import tirx as T

from moec.targets.cuda.architectures import LIMITS
from moec.targets.cuda.kernels.grouped_problem import GroupedProblem
from moec.targets.cuda.kernels.launch import WARP
from moec.targets.cuda.kernels.mma_tile import SWIZZLE_BYTES, TileShape

WARPGROUP = 128
"""Threads of four warps, which issue wgmma together."""
GROUP_ROWS = 64
"""Rows of one instruction."""
CONSUMERS = 2
"""Warpgroups that multiply, beside the one that produces k-tiles."""
HEIGHTS = (64, 128)
_CLUSTER = 2
"""Blocks of threads that share a matrix, where each expert has rows for several: :func:`_cluster`."""
_MOST_COLUMNS = 256
"""Columns of one instruction."""
_COLUMN_STEP = 16
"""Gate and up of 8 hidden units, and what the threads that decode have at once."""
_MOST_SUMS, _MOST_SUMS_BESIDE_DECODERS = 192, 128
"""Registers of a thread that sums may take."""
_MOST_SCALED_SUMS = 72
"""The same where consumers share a tile: beside them stand those of a group of inputs, and scales."""
_MOST_STAGES = 8
_BARRIER_BYTES, _TURN_BYTES = 16, 16
"""Of a stage, and of all of them."""
_MULTIPROCESSORS = 132
"""Of an H100, by which the height of a band is chosen. Any number gives the same results."""


@dataclasses.dataclass(frozen=True)
class WgmmaTile:
    """``rows`` x ``columns`` sums in the registers of a warpgroup; k-tiles come in a ring of ``stages``. ``band``:
    blocks of rows whose tiles are computed at about the same time. ``cluster``: blocks of threads that bring one
    another parts of the matrix."""

    rows: int
    columns: int
    stages: int
    band: int
    cluster: int
    together: bool = False
    """Whether consumers share a tile, by its rows where there are enough for both, else by its columns."""

    @property
    def threads(self) -> int:
        """The threads of a block."""
        return (1 + CONSUMERS) * WARPGROUP

    @property
    def row_steps(self) -> int:
        """Instructions of a consumer along the rows."""
        return 1 if self.together else self.rows // GROUP_ROWS

    @property
    def instruction_columns(self) -> int:
        return self.columns // self.consumer_shape.column_warps

    @property
    def consumer_shape(self) -> TileShape:
        """How the warps of a consumer share a tile; those of both, where it is theirs together."""
        warps, across = WARPGROUP // WARP, 1
        if self.together:
            warps, across = (warps * CONSUMERS, 1) if self.rows > GROUP_ROWS else (warps, CONSUMERS)
        return TileShape(self.rows, warps, across, self.stages, self.columns, step_rows=GROUP_ROWS)

    @property
    def producer_shape(self) -> TileShape:
        """Its warps copy all columns."""
        return TileShape(self.rows, 1, WARPGROUP // WARP, self.stages, self.columns)

    @property
    def columns_each(self) -> int:
        """Columns of the matrix that a block of a cluster brings."""
        return self.columns // self.cluster

    def tiles_across(self, problem: GroupedProblem) -> int:
        return -(-problem.columns // self.columns)


def wgmma_tile(problem: GroupedProblem) -> WgmmaTile:
    """Tiles as wide as registers allow, fewer columns where that takes no more of them."""
    together = problem.in_fp8
    sums = _MOST_SUMS_BESIDE_DECODERS if problem.decodes else _MOST_SUMS
    sums = _MOST_SCALED_SUMS * CONSUMERS if together else sums
    most = min(_MOST_COLUMNS, sums * WARPGROUP // problem.block_rows)
    step = _COLUMN_STEP * (CONSUMERS if together and problem.block_rows == GROUP_ROWS else 1)
    tiles = -(-problem.columns // most)
    columns = -(-problem.columns // (tiles * step)) * step
    stage_bytes = (problem.block_rows + columns) * SWIZZLE_BYTES + _BARRIER_BYTES
    stages = min(_MOST_STAGES, (LIMITS["sm_90a"].shared_bytes - _TURN_BYTES) // stage_bytes)
    band = _band(problem.block_rows, columns)
    return WgmmaTile(problem.block_rows, columns, stages, band, _cluster(problem), together)


def _cluster(problem: GroupedProblem) -> int:
    """Blocks of this height are chosen where experts have as many rows on average, so that neighbours mostly have one
    matrix. Below, bytes from memory are the limit, which a cluster does not save; a matrix that is decoded is decoded
    by every block for itself."""
    return _CLUSTER if not problem.decodes and problem.block_rows == max(HEIGHTS) else 1


def _band(rows: int, columns: int) -> int:
    """Blocks of rows for which tiles that are computed together, one per multiprocessor, read the fewest bytes: as much
    of rows as of the matrix."""
    return max(1, round(math.sqrt(_MULTIPROCESSORS * columns / rows)))


@dataclasses.dataclass(frozen=True)
class Turn:
    """A tile of a block of threads. ``shares``: whether all blocks of its cluster need the same columns of one matrix;
    ``stores``: not where a block has no rows of its own and computes those of its neighbour, to bring its part of the
    matrix."""

    block: Any
    expert: Any
    first_column: Any
    shares: Any = True
    stores: Any = True


@dataclasses.dataclass(frozen=True)
class Place:
    """Of a block of threads in the grid: the ``first`` of its tiles, the ``step`` from one to the next, and its
    ``rank`` in its cluster, whose blocks have them in common."""

    first: Any
    step: Any
    rank: Any


def _some_are_used(operands: Any, *blocks: Any) -> Any:
    """Whether one of the blocks of rows, of which the first exists, is to be computed: not those of experts that have
    another kernel."""
    if operands.problem.first_expert is None:
        return True
    return functools.reduce(T.Or, map(operands.is_used, blocks))


@T.inline
def for_each_tile(operands, tile, place, visit):
    """``visit(turn)`` for the tiles ``place.first``, ``place.first + place.step``, ...: those of blocks that are
    used."""
    across = T.meta_var(tile.tiles_across(operands.problem))
    band = T.meta_var(max(1, tile.band // tile.cluster))
    # Blocks of rows, or pairs of them.
    blocks: T.let = T.ceildiv(operands.used_blocks, tile.cluster)
    # The largest: of producers and consumers each have a register for it, where ptxas spills one that both begin with.
    for tile_index in T.serial(T.max(place.first, 0), blocks * across, step=place.step):
        top: T.let = T.truncdiv(tile_index, band * across) * band
        height: T.let = T.min(band, blocks - top)
        block: T.let = top + T.truncmod(tile_index - top * across, height)
        first_column: T.let = T.truncdiv(tile_index - top * across, height) * tile.columns
        if tile.cluster == 1:
            if _some_are_used(operands, block):
                expert: T.let = operands.expert(block)
                alone = T.meta_var(Turn(block, expert, first_column))
                visit(alone)
        else:
            own: T.let = block * tile.cluster + place.rank
            other: T.let = own ^ 1
            if _some_are_used(operands, own, other):
                mine: T.let = T.if_then_else(operands.is_used(own), own, other)
                expert: T.let = operands.expert(mine)
                neighbour = T.meta_var(T.if_then_else(operands.is_used(other), other, own))
                shares = T.meta_var(expert == operands.expert(neighbour))
                together = T.meta_var(Turn(mine, expert, first_column, shares, mine == own))
                visit(together)
