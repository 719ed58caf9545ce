"""The tile of a warpgroup that multiplies with wgmma, and how a block of threads shares its time between tiles.

The grid is as large as the GPU has multiprocessors, and each block of threads computes several tiles, one after
another: those whose number is its own and those a grid further on. Numbers follow one another so that tiles computed at
the same time read the same memory, which then comes from the L2 cache: a *band* of neighbouring blocks of rows, which
belong to one expert or few, column by column, then the next band.
"""

from __future__ import annotations

import dataclasses
import math

from tvm.script import tirx as T

from moec.targets.cuda.architectures import LIMITS
from moec.targets.cuda.kernels.grouped_problem import GroupedProblem
from moec.targets.cuda.kernels.launch import WARP
from moec.targets.cuda.kernels.mma_tile import LINE_BYTES, TileShape

WARPGROUP = 128
"""Threads of four warps, which issue wgmma together."""
GROUP_ROWS = 64
"""Rows of one instruction."""
CONSUMERS = 2
"""Warpgroups that multiply, beside the one that produces panels."""
HEIGHTS = (64, 128)
_MOST_COLUMNS = 256
"""Columns of one instruction."""
_COLUMN_STEP = 16
"""Gate and up of 8 hidden units, and what the threads that decode have at once."""
_MOST_SUMS, _MOST_SUMS_BESIDE_DECODERS = 192, 128
"""Registers of a thread that sums may take."""
_MOST_SCALED_SUMS = 72
"""The same where consumers share a tile: beside them stand those of a group of inputs, and scales."""
_REGISTERS, _REGISTERS_BESIDE_DECODERS = (40, 232), (104, 200)
"""Registers of a thread of the producer, and of a consumer: three warpgroups have 168 each at the start."""
_MOST_STAGES = 8
_BARRIER_BYTES, _TURN_BYTES = 16, 16
"""Of a stage, and of all of them."""
_MULTIPROCESSORS = 132
"""Of an H100, by which the height of a band is chosen. Any number gives the same results."""


@dataclasses.dataclass(frozen=True)
class WgmmaTile:
    """``rows`` x ``columns`` sums in the registers of a warpgroup; panels come in a ring of ``stages``. ``band``:
    blocks of rows whose tiles are computed at about the same time."""

    rows: int
    columns: int
    stages: int
    band: int
    producer_registers: int
    consumer_registers: int
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
        """Its warps copy lines of all columns."""
        return TileShape(self.rows, 1, WARPGROUP // WARP, self.stages, self.columns)

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
    stage_bytes = (problem.block_rows + columns) * LINE_BYTES + _BARRIER_BYTES
    stages = min(_MOST_STAGES, (LIMITS["sm_90a"].shared_bytes - _TURN_BYTES) // stage_bytes)
    registers = _REGISTERS_BESIDE_DECODERS if problem.decodes else _REGISTERS
    return WgmmaTile(problem.block_rows, columns, stages, _band(problem.block_rows, columns), *registers, together)


def _band(rows: int, columns: int) -> int:
    """Blocks of rows for which tiles that are computed together, one per multiprocessor, read the fewest bytes: as much
    of rows as of the matrix."""
    return max(1, round(math.sqrt(_MULTIPROCESSORS * columns / rows)))


@T.inline
def for_each_tile(operands, tile, first, step, visit):
    """``visit(block, expert, first_column)`` for the tiles ``first``, ``first + step``, ...: those of blocks that are
    used."""
    across = T.meta_var(tile.tiles_across(operands.problem))
    blocks: T.let = operands.used_blocks
    for turn in T.serial(T.truncdiv(T.max(blocks * across - first, 0) + step - 1, step)):
        index: T.let = first + turn * step
        top: T.let = T.truncdiv(index, tile.band * across) * tile.band
        height: T.let = T.min(tile.band, blocks - top)
        block: T.let = top + T.truncmod(index - top * across, height)
        first_column: T.let = T.truncdiv(index - top * across, height) * tile.columns
        if operands.is_used(block):
            expert: T.let = operands.expert(block)
            visit(block, expert, first_column)
