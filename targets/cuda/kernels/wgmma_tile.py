"""The tile of a warpgroup that multiplies with wgmma (:mod:`.persistent_tiles`)."""

from __future__ import annotations

import dataclasses

from moec.targets.cuda.hardware.architectures import LIMITS
from moec.targets.cuda.kernels.mma_tile import TileShape
from moec.targets.cuda.kernels.persistent_tiles import (
    COLUMN_STEP,
    WARPGROUP,
    PersistentTile,
    blocks_in_band,
    columns_of_tile,
    stages_that_fit,
)
from moec.targets.gpu.kernels.fp8_rows import GROUP
from moec.targets.gpu.kernels.grouped_problem import GroupedProblem
from moec.targets.gpu.kernels.launch import WARP

HEIGHTS = (64, 128)
"""Rows of a tile."""
GROUP_ROWS = 64
"""Rows of one instruction."""
CONSUMERS = 2
"""Warpgroups that multiply; one more produces k-tiles."""
_MOST_COLUMNS = 256
"""The most columns of one instruction."""
_MOST_SUMS, _MOST_SUMS_BESIDE_DECODERS = 192, 128
"""Registers of a thread for sums, at most."""
_MOST_SCALED_SUMS = 72
"""The same limit if consumers share a tile: a thread also needs registers for the sums of a group of inputs, and for
scales."""
_TURN_BYTES = 16
"""Bytes of the barriers for turns."""
_CLUSTER = 2
"""Blocks of threads that share a matrix, if each expert has rows for several."""
_MULTIPROCESSORS = 132
"""The multiprocessors of an H100."""


@dataclasses.dataclass(frozen=True)
class WgmmaTile(PersistentTile):
    """A tile whose sums are in the registers of a warpgroup, or of both consumers together."""

    together: bool = False
    """Whether consumers share a tile: by rows if there are enough for both, otherwise by columns."""

    @property
    def threads(self) -> int:
        """The threads of a block."""
        return (1 + CONSUMERS) * WARPGROUP

    @property
    def releases(self) -> int:
        """One arrival of each consumer that multiplies the stage, in each block of the cluster."""
        return self.cluster * (CONSUMERS if self.together else 1)

    @property
    def row_steps(self) -> int:
        """Instructions of a consumer along its rows."""
        return 1 if self.together else self.rows // GROUP_ROWS

    @property
    def computed_multiple(self) -> int:
        """The multiple to which the rows of an expert are computed. Blocks of threads in a cluster wait for each other,
        so one of few rows takes as long as its neighbour."""
        return GROUP_ROWS if self.row_steps > 1 and self.cluster == 1 else self.rows

    @property
    def instruction_columns(self) -> int:
        return self.columns // self.consumer_shape.column_warps

    @property
    def consumer_shape(self) -> TileShape:
        """The partition of a tile among the warps of a consumer, or among those of both if they share it."""
        warps, across = WARPGROUP // WARP, 1
        if self.together:
            warps, across = (warps * CONSUMERS, 1) if self.rows > GROUP_ROWS else (warps, CONSUMERS)
        return TileShape(self.rows, warps, across, self.stages, self.columns, step_rows=GROUP_ROWS)


def _blocks_in_cluster(problem: GroupedProblem) -> int:
    """The number of blocks of threads in a cluster: two for the greatest height, otherwise one.

    The greatest height is chosen if experts have as many rows on average, so neighbouring blocks mostly share a matrix.
    With lower blocks memory is the limit, and a cluster does not save reads of memory. A matrix that is decoded cannot
    be shared, because every block decodes it for itself.
    """
    return _CLUSTER if not problem.decodes and problem.block_rows == max(HEIGHTS) else 1


def wgmma_tile(problem: GroupedProblem) -> WgmmaTile:
    """The tile for a problem. It is as wide as registers allow, or narrower if the number of tiles stays the same. If
    columns share scales, those of a consumer are of one block, so that it needs a single scale of each kind."""
    together = problem.in_fp8
    sums = _MOST_SUMS_BESIDE_DECODERS if problem.decodes else _MOST_SUMS
    sums = _MOST_SCALED_SUMS * CONSUMERS if together else sums
    most = min(_MOST_COLUMNS, sums * WARPGROUP // problem.block_rows)
    shared = together and problem.shares_scales and problem.columns > GROUP
    step = GROUP if shared else COLUMN_STEP
    step *= CONSUMERS if together and problem.block_rows == GROUP_ROWS else 1
    columns = columns_of_tile(problem, most, step)
    stages = stages_that_fit(problem.block_rows, columns, LIMITS["sm_90a"].shared_bytes - _TURN_BYTES)
    band = blocks_in_band(problem.block_rows, columns, _MULTIPROCESSORS)
    return WgmmaTile(problem.block_rows, columns, stages, band, _blocks_in_cluster(problem), together)
