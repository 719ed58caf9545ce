"""The tiles of persistent products, and the order in which blocks of threads compute them.

The grid has one block of threads per multiprocessor. Each block computes several tiles, one after another: the tile
with its own number, and then every grid-size-th after it. Two blocks of threads may form a *cluster*. With wgmma, they
compute the tiles of two neighbouring blocks of rows, which mostly belong to one expert, and each copies half of the
matrix to both. With tcgen05, they compute one tile together.

Tiles are numbered such that tiles computed at the same time read the same memory, which then comes from the L2 cache:
first a *band* of neighbouring blocks of rows, which belong to one expert or few, column by column, then the next band.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

from tvm.script import tirx as T

from moec.targets.cuda.kernels.mma_tile import SWIZZLE_BYTES, TileShape
from moec.targets.gpu.kernels.grouped_problem import GroupedProblem
from moec.targets.gpu.kernels.launch import WARP

WARPGROUP = 128
"""Threads of four warps. One warpgroup of a block of threads copies k-tiles into shared memory."""
COLUMN_STEP = 16
"""Columns of a tile are a multiple of this: gate and up of 8 hidden units, and the columns that decoding threads handle
at once."""
_MOST_STAGES = 8
_BARRIER_BYTES = 16
"""Bytes of the barriers of one stage."""


@dataclasses.dataclass(frozen=True)
class PersistentTile:
    """A tile of ``columns`` columns, of which a block of threads has ``rows`` rows. ``stages``: of the ring of k-tiles;
    ``band``: blocks of rows whose tiles are computed at about the same time; ``cluster``: blocks of threads of which
    each copies a part of the matrix."""

    rows: int
    columns: int
    stages: int
    band: int
    cluster: int

    @property
    def threads(self) -> int:
        """The threads of a block."""
        raise NotImplementedError

    @property
    def releases(self) -> int:
        """The number of arrivals that make a stage empty."""
        raise NotImplementedError

    @property
    def gathers(self) -> bool:
        """Whether TMA gathers rows; otherwise threads copy those that do not follow one another."""
        return False

    @property
    def blocks_together(self) -> int:
        """Blocks of rows whose tiles a cluster computes at the same time."""
        return self.cluster

    @property
    def stored_columns(self) -> int:
        """Columns of a k-tile in the shared memory of one block of threads."""
        return self.columns

    @property
    def producer_shape(self) -> TileShape:
        """The partition of a k-tile among the warps of the producer, which copy all of its columns."""
        return TileShape(self.rows, 1, WARPGROUP // WARP, self.stages, self.stored_columns)

    @property
    def columns_each(self) -> int:
        """Columns of the matrix that each block of a cluster copies."""
        return self.columns // self.cluster

    def tiles_across(self, problem: GroupedProblem) -> int:
        return -(-problem.columns // self.columns)


def columns_of_tile(problem: GroupedProblem, most: int, step: int = COLUMN_STEP) -> int:
    """The columns of a tile, a multiple of ``step``: ``most`` at most, or fewer if the number of tiles stays the
    same."""
    most -= most % step
    tiles = -(-problem.columns // most)
    return -(-problem.columns // (tiles * step)) * step


def stages_that_fit(rows: int, columns: int, shared_bytes: int) -> int:
    """The stages of a ring with k-tiles of ``rows`` and ``columns`` in ``shared_bytes`` of shared memory."""
    return min(_MOST_STAGES, shared_bytes // ((rows + columns) * SWIZZLE_BYTES + _BARRIER_BYTES))


def blocks_in_band(rows: int, columns: int, multiprocessors: int) -> int:
    """The number of blocks of rows in a band for which the tiles computed at the same time, one per multiprocessor,
    read the fewest bytes: as many of rows as of the matrix. Results do not depend on it."""
    return max(1, round(math.sqrt(multiprocessors * columns / rows)))


@dataclasses.dataclass(frozen=True)
class Turn:
    """One tile in the work of a block of threads. ``shares``: whether all blocks of its cluster need the same columns
    of one matrix. ``stores``: whether it stores results. A block without rows of its own does not: it computes those of
    its neighbour, only to copy its part of the matrix."""

    block: Any
    expert: Any
    first_column: Any
    shares: Any = True
    stores: Any = True


@dataclasses.dataclass(frozen=True)
class GridPlace:
    """The place of a block of threads in the grid: the ``first`` of its tiles, the ``step`` from one tile to the next,
    both the same for all blocks of a cluster, and its ``rank`` in the cluster."""

    first: Any
    step: Any
    rank: Any


def _some_are_used(operands: Any, *blocks: Any) -> Any:
    """Whether at least one of the blocks of rows has to be computed; blocks of other kernels' experts need not. The
    first of ``blocks`` has to exist."""
    if operands.problem.first_expert is None:
        return True
    return functools.reduce(T.Or, map(operands.is_used, blocks))


@T.inline
def for_each_tile(operands, tile, place, visit):
    """Emit ``visit(turn)`` for the tiles ``place.first``, ``place.first + place.step``, ..., without those of blocks
    that are not used."""
    across = T.meta_var(tile.tiles_across(operands.problem))
    band = T.meta_var(max(1, tile.band // tile.blocks_together))
    # The number of blocks of rows, or of pairs of them in clusters.
    blocks: T.let = T.ceildiv(operands.used_blocks, tile.blocks_together)
    # T.max gives producers and consumers each their own register; ptxas spills a register that both start from.
    for tile_index in T.serial(T.max(place.first, 0), blocks * across, step=place.step):
        top: T.let = T.truncdiv(tile_index, band * across) * band
        height: T.let = T.min(band, blocks - top)
        block: T.let = top + T.truncmod(tile_index - top * across, height)
        first_column: T.let = T.truncdiv(tile_index - top * across, height) * tile.columns
        if tile.blocks_together == 1:
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
