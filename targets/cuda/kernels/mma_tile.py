"""The tile that a block of threads computes on tensor cores, and how its work is shared."""

from __future__ import annotations

import dataclasses
from typing import Any

from tvm.script import tirx as T

from moec.common.dtypes import dtype_of
from moec.targets.cuda.kernels.grouped_problem import GroupedProblem, Operands
from moec.targets.cuda.kernels.launch import WARP

COLUMNS = 128
"""Columns of a usual tile, those of gate and up both counted."""
SWIZZLE_BYTES = 128
"""The bytes of a row of a k-tile in shared memory: what the 128-byte swizzle goes round in."""
CHUNKS = 8
"""Chunks of such a row: the 16 bytes that are copied at once."""
DEPTH = 64
"""Inputs of a k-tile of 16-bit floats."""
CHUNK = DEPTH // CHUNKS
"""Their number in a chunk."""
MMA_ROWS, MMA_COLUMNS, MMA_DEPTH = 16, 8, 16
"""Sizes of one instruction for 16-bit floats."""
MMA_STEPS = DEPTH // MMA_DEPTH
"""Instructions along a k-tile, of any type: an instruction takes two chunks of a row."""


@dataclasses.dataclass(frozen=True)
class TileShape:
    """How the work of a tile is shared: warps along its rows and columns, and k-tiles that are in flight or in use.
    ``step_rows``: how far apart the rows of a warp's multiplications are."""

    rows: int
    row_warps: int
    column_warps: int
    stages: int
    columns: int = COLUMNS
    step_rows: int = MMA_ROWS

    @property
    def threads(self) -> int:
        return self.row_warps * self.column_warps * WARP

    @property
    def row_steps(self) -> int:
        """Multiplications of a warp along its rows."""
        return self.rows // self.row_warps // MMA_ROWS

    @property
    def column_steps(self) -> int:
        """Multiplications of a warp along its columns."""
        return self.columns // self.column_warps // MMA_COLUMNS

    @property
    def rows_per_copy(self) -> int:
        """Rows of a k-tile that the threads copy at once, one chunk each."""
        return self.threads // CHUNKS

    @property
    def shared_bytes(self) -> int:
        return self.stages * (self.rows + self.columns) * SWIZZLE_BYTES


SHAPES = {shape.rows: shape for shape in (TileShape(16, 1, 4, 4), TileShape(64, 2, 2, 2), TileShape(128, 2, 2, 2))}
"""By rows of a block. An A100's multiprocessor holds two or more blocks of 64 and of 128 rows at once: one multiplies
while another waits for its k-tile or stores, which is also why two stages are enough. Tiles of 16 rows may be too few
for that, and have more k-tiles on their way.

Warps have 64 x 64 numbers of a tile of 128 rows, for shared memory brings 128 bytes in a cycle: of 16 inputs, 8 KiB are
written and 16 read, in 192 of the 256 cycles that an A100's tensor cores take to multiply them. Warps of 64 x 32 would
read 24, in all 256.
"""
_BESIDE_SCALED_SUMS = TileShape(128, 2, 4, 3)
"""Of 128 rows in fp8: each sum has one of a group beside it, and registers are enough for one block."""


def tile_shape(problem: GroupedProblem) -> TileShape:
    """How the tile of a product is shared, where there is one of so many rows."""
    shape = SHAPES[problem.block_rows]
    if problem.in_fp8 and shape.rows == _BESIDE_SCALED_SUMS.rows:
        return _BESIDE_SCALED_SUMS
    # What is decoded is read a k-tile ahead, however many stages there are; more blocks fill more of that wait.
    return dataclasses.replace(shape, stages=2) if problem.decodes else shape


def k_tile_depth(dtype: str) -> int:
    """Inputs of a k-tile of that type."""
    return SWIZZLE_BYTES // dtype_of(dtype).itemsize


@dataclasses.dataclass(frozen=True)
class Tile:
    """What a thread knows of its tile. ``warp_row`` and ``warp_column``: where the rectangle of its warp begins.
    ``row_tiles`` and ``column_tiles`` [stages, rows or columns, depth] are shared. The tile's k-tiles are those from
    ``first_k_tile`` to before ``end_k_tile``, or to the last of all inputs."""

    operands: Operands
    shape: TileShape
    block: Any
    expert: Any
    first_column: Any
    thread: Any
    lane: Any
    warp_row: Any
    warp_column: Any
    row_tiles: Any
    column_tiles: Any
    first_k_tile: Any = 0
    end_k_tile: Any = None

    @property
    def problem(self) -> GroupedProblem:
        return self.operands.problem

    @property
    def depth(self) -> int:
        """Inputs of a k-tile."""
        return k_tile_depth(self.problem.dtype)

    @property
    def chunk_inputs(self) -> int:
        return self.depth // CHUNKS

    @property
    def k_tiles(self) -> Any:
        """How many are multiplied."""
        end = -(-self.problem.inner // self.depth) if self.end_k_tile is None else self.end_k_tile
        return end - self.first_k_tile

    def has_column(self, column: Any) -> Any:
        """Whether the matrix has it: the last tile may be wider than what is left."""
        return self._whole_tiles or column < self.problem.columns

    def column_or_last(self, column: Any) -> Any:
        """A column that the matrix has."""
        return column if self._whole_tiles else T.min(column, self.problem.columns - 1)

    @property
    def has_whole_steps(self) -> bool:
        """Whether the matrix has all columns of a multiplication, or none."""
        return self.problem.columns % MMA_COLUMNS == 0

    def step_or_last(self, column: Any) -> Any:
        """The first column of a multiplication, all of which the matrix has; where it may have some of them, that one,
        for who asks looks at each column."""
        if self._whole_tiles or not self.has_whole_steps:
            return column
        return T.min(column, self.problem.columns - MMA_COLUMNS)

    def has_input(self, k: Any) -> Any:
        """Whether the rows have it: the last k-tile may be deeper than what is left."""
        return self._whole_k_tiles or k < self.problem.inner

    def chunk_or_last(self, k: Any) -> Any:
        """The first input of a chunk that the rows have."""
        return k if self._whole_k_tiles else T.min(k, self.problem.inner - self.chunk_inputs)

    @property
    def _whole_tiles(self) -> bool:
        return self.problem.columns % self.shape.columns == 0

    @property
    def _whole_k_tiles(self) -> bool:
        return self.problem.inner % self.depth == 0

    @property
    def chunk(self) -> Any:
        """Which chunk of its rows this thread copies."""
        return self.thread % CHUNKS

    def first_input(self, k_tile: Any) -> Any:
        """The first input of the chunk that this thread copies of a k-tile."""
        return k_tile * self.depth + self.chunk * self.chunk_inputs

    def copied_row(self, i: Any) -> Any:
        """The ``i``-th row of a k-tile that this thread copies to."""
        return i * self.shape.rows_per_copy + self.thread // CHUNKS

    @property
    def place(self) -> Any:
        """Where its chunk goes within a row; the same in all its rows, for they are a multiple of 8 apart."""
        return (self.chunk ^ (self.thread // CHUNKS % 8)) * self.chunk_inputs
