"""The tile that one block of threads multiplies with tcgen05, or a pair of them (:mod:`.persistent_tiles`).

A pair is a cluster of two blocks of threads on neighbouring multiprocessors. One of them starts instructions for both
(``cta_group::2``): each holds half of the rows and half of the columns of a k-tile, and the sums of half of the rows.
So the matrix is read once for 256 rows, and has half of the room in the shared memory of each. All of these rows have
to belong to one expert, so a pair has blocks of 256 rows. If at most 128 of them are used, an instruction multiplies
128, half of them in each block of threads: padding is the same as with blocks of 128 rows.

Sums are in tensor memory, which has 128 lanes of 512 columns of 32 bits: room for two tiles.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder

from moec.targets.cuda.hardware.architectures import LIMITS
from moec.targets.cuda.kernels.mma_tile import TileShape
from moec.targets.cuda.kernels.persistent_tiles import (
    WARPGROUP,
    PersistentTile,
    blocks_in_band,
    columns_of_tile,
    stages_that_fit,
)
from moec.targets.gpu.kernels.grouped_problem import GroupedProblem
from moec.targets.gpu.kernels.launch import WARP

ACCUMULATORS = 2
"""Tiles in tensor memory: one is multiplied while the other is in its epilogue."""
PAIR_ROWS = 256
"""Rows of a block that a pair computes."""
HEIGHTS = (64, PAIR_ROWS)
"""Rows of a block."""
_MOST_COLUMNS = 256
"""The most columns of one instruction."""
_FEWEST_ALLOCATED = 32
"""The fewest columns of tensor memory that can be allocated. Their number is a power of two."""
_COLUMN_STEP = 64
"""Columns of a tile are a multiple of this, so that each half of them is one part or two, with whole groups of gate and
up."""
_MOST_PART_COLUMNS = 64
"""Columns that the epilogue takes at a time from tensor memory to registers, at most."""
_OTHER_BYTES = 64
"""Bytes of the barriers of accumulators, and of the address of tensor memory."""
_MULTIPROCESSORS = 148
"""The multiprocessors of a B200."""


@dataclasses.dataclass(frozen=True)
class UmmaTile(PersistentTile):
    """A tile whose sums are in tensor memory. A row has a lane; of 64 rows, each warp of the epilogue has 16. A pair
    has ``cluster`` 2, and ``rows`` are those of each of its blocks of threads."""

    @property
    def threads(self) -> int:
        """The producer, the epilogue, and the warp that multiplies."""
        return 2 * WARPGROUP + WARP

    @property
    def releases(self) -> int:
        """One, when the products of the stage are complete."""
        return 1

    @property
    def gathers(self) -> bool:
        return True

    @property
    def blocks_together(self) -> int:
        return 1

    @property
    def stored_columns(self) -> int:
        return self.columns_each

    @property
    def computed_multiple(self) -> int:
        """The multiple to which the rows of an expert are computed."""
        return self.rows

    @property
    def accumulator_columns(self) -> int:
        """Columns of tensor memory from one accumulator to the next."""
        return max(_FEWEST_ALLOCATED, 1 << (self.columns - 1).bit_length())

    @property
    def allocated_columns(self) -> int:
        return ACCUMULATORS * self.accumulator_columns

    @property
    def part_columns(self) -> int:
        """Columns that the epilogue takes at a time from tensor memory to registers: half of the tile, or a quarter."""
        half = self.columns // 2
        return half if half <= _MOST_PART_COLUMNS else half // 2

    @property
    def part_shape(self) -> TileShape:
        """The partition of a part among the warps of the epilogue, each of which has its own rows."""
        return TileShape(self.rows, WARPGROUP // WARP, 1, self.stages, self.part_columns)


def umma_tile(problem: GroupedProblem) -> UmmaTile:
    """The tile for a problem: as wide as an instruction may be, or narrower if the number of tiles stays the same."""
    cluster = 2 if problem.block_rows == PAIR_ROWS else 1
    rows, columns = problem.block_rows // cluster, columns_of_tile(problem, _MOST_COLUMNS, _COLUMN_STEP)
    stages = stages_that_fit(rows, columns // cluster, LIMITS["sm_100a"].shared_bytes - _OTHER_BYTES)
    band = blocks_in_band(problem.block_rows, columns, _MULTIPROCESSORS // cluster)
    return UmmaTile(rows, columns, stages, band, cluster)


def is_half(tile: UmmaTile, operands: Any, block: Any) -> Any:
    """Whether a pair multiplies only half of the rows of a block, because the others are padding."""
    if tile.cluster == 1:
        return False
    half = T.Bind(operands.pair(block, tile.rows) < 0)
    IRBuilder.name("is_half", half)
    return half


@dataclasses.dataclass(frozen=True)
class Place:
    """The place of sums in a tile: the first ``row`` in the block of rows and the first ``column``."""

    row: Any
    column: Any


def own_rows(tile: UmmaTile, half: Any, rank: Any) -> Any:
    """The first row that a block of threads holds, in the block of rows."""
    return 0 if tile.cluster == 1 else rank * T.Select(half, tile.rows // 2, tile.rows)


def sums_of_warp(tile: UmmaTile, half: Any, rank: Any, warp: Any) -> tuple[Place, Any]:
    """The place of the sums in the first column of a warp's lanes of tensor memory, and the number of its parts.

    If a pair multiplies half of its rows, lanes from 64 on have the same rows as those before, and the second half of
    the columns (PTX ISA, layout B of ``cta_group::2``).
    """
    rows_of_warp, parts = tile.rows // (WARPGROUP // WARP), tile.columns // tile.part_columns
    if tile.cluster == 1:
        return Place(warp * rows_of_warp, 0), parts
    row = T.Select(half, warp % 2, warp) * rows_of_warp
    column = T.Select(half, warp // 2 * (tile.columns // 2), 0)
    return Place(own_rows(tile, half, rank) + row, column), T.Select(half, parts // 2, parts)
