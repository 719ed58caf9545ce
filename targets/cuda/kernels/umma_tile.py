"""The tile of a block of threads that multiplies with tcgen05 (:mod:`.persistent_tiles`).

Its sums are in tensor memory, which has 128 lanes of 512 columns of 32 bits: room for two tiles.
"""

from __future__ import annotations

import dataclasses

from moec.targets.cuda.hardware.architectures import LIMITS
from moec.targets.cuda.kernels.mma_tile import TileShape
from moec.targets.cuda.kernels.persistent_tiles import (
    WARPGROUP,
    PersistentTile,
    blocks_in_band,
    blocks_in_cluster,
    columns_of_tile,
    stages_that_fit,
)
from moec.targets.gpu.kernels.grouped_problem import GroupedProblem
from moec.targets.gpu.kernels.launch import WARP

ACCUMULATORS = 2
"""Tiles in tensor memory: one is multiplied while the other is in its epilogue."""
_MOST_COLUMNS = 256
"""The most columns of one instruction, of 64 or 128 rows."""
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
    """A tile whose sums are in tensor memory. A row has a lane; of 64 rows, each warp of the epilogue has 16."""

    @property
    def threads(self) -> int:
        """The producer, the epilogue, and the warp that multiplies."""
        return 2 * WARPGROUP + WARP

    @property
    def releases(self) -> int:
        """One of each block of the cluster, when its products of the stage are complete."""
        return self.cluster

    @property
    def accumulator_columns(self) -> int:
        """Columns of tensor memory from one accumulator to the next."""
        return max(_FEWEST_ALLOCATED, 1 << (self.columns - 1).bit_length())

    @property
    def allocated_columns(self) -> int:
        return ACCUMULATORS * self.accumulator_columns

    @property
    def warp_rows(self) -> int:
        """Rows of a warp of the epilogue."""
        return self.rows * WARP // WARPGROUP

    @property
    def part_columns(self) -> int:
        """Columns that the epilogue takes at a time from tensor memory to registers: half of the tile, or a quarter."""
        half = self.columns // 2
        return half if half <= _MOST_PART_COLUMNS else half // 2

    @property
    def parts(self) -> int:
        """Parts of the columns, which the epilogue takes one after another."""
        return self.columns // self.part_columns

    @property
    def part_shape(self) -> TileShape:
        """The partition of a part among the warps of the epilogue, each of which has its own rows."""
        return TileShape(self.rows, WARPGROUP // WARP, 1, self.stages, self.part_columns)


def umma_tile(problem: GroupedProblem) -> UmmaTile:
    """The tile for a problem: as wide as an instruction may be, or narrower if the number of tiles stays the same."""
    columns = columns_of_tile(problem, _MOST_COLUMNS, _COLUMN_STEP)
    stages = stages_that_fit(problem.block_rows, columns, LIMITS["sm_100a"].shared_bytes - _OTHER_BYTES)
    band = blocks_in_band(problem.block_rows, columns, _MULTIPROCESSORS)
    return UmmaTile(problem.block_rows, columns, stages, band, blocks_in_cluster(problem))
