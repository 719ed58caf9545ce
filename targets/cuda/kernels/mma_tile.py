"""The tile that a block of threads computes on tensor cores, and the partition of its work among warps and lanes."""

from __future__ import annotations

import dataclasses
from typing import Any

from tvm.script import tirx as T

from moec.common.dtypes import dtype_of
from moec.targets.gpu.kernels.grouped_problem import GroupedProblem, Operands
from moec.targets.gpu.kernels.launch import WARP

COLUMNS = 128
"""Columns of a usual tile, counting those of gate and up."""
SWIZZLE_BYTES = 128
"""Bytes of a row of a k-tile in shared memory; the 128-byte swizzle permutes chunks within them."""
CHUNKS = 8
"""Chunks of such a row, 16 bytes each, which are copied at once."""
DEPTH = 64
"""Inputs of a k-tile of 16-bit floats."""
CHUNK = DEPTH // CHUNKS
"""Inputs of a chunk of 16-bit floats."""
MMA_ROWS, MMA_COLUMNS, MMA_DEPTH = 16, 8, 16
"""Sizes of one instruction for 16-bit floats."""
MMA_STEPS = DEPTH // MMA_DEPTH
"""Instructions along a k-tile, of any type: an instruction takes two chunks of a row."""


@dataclasses.dataclass(frozen=True)
class TileShape:
    """The partition of a tile's work. ``row_warps`` and ``column_warps``: warps along its rows and columns; ``stages``:
    k-tiles in flight or in use; ``step_rows``: distance between the rows of a warp's consecutive instructions."""

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
        """Instructions of a warp along its rows."""
        return self.rows // self.row_warps // MMA_ROWS

    @property
    def column_steps(self) -> int:
        """Instructions of a warp along its columns."""
        return self.columns // self.column_warps // MMA_COLUMNS

    @property
    def rows_per_copy(self) -> int:
        """Rows of a k-tile that all threads copy at once, one chunk per thread."""
        return self.threads // CHUNKS

    @property
    def shared_bytes(self) -> int:
        return self.stages * (self.rows + self.columns) * SWIZZLE_BYTES


SHAPES = {shape.rows: shape for shape in (TileShape(16, 1, 4, 4), TileShape(64, 2, 2, 2), TileShape(128, 2, 2, 2))}
"""Shapes by the rows of a block. An A100's multiprocessor holds at least two blocks of 64 or 128 rows at once. One
multiplies while another waits for its k-tile or stores, so two stages are enough. There may be too few tiles of 16 rows
for that, so they have more k-tiles in flight.

In a tile of 128 rows each warp computes 64 x 64 numbers, because shared memory delivers 128 bytes in a cycle. For 16
inputs, 8 KiB are written and 16 KiB read, in 192 of the 256 cycles that an A100's tensor cores take to multiply them.
Warps of 64 x 32 numbers would read 24 KiB, and use all 256 cycles.
"""
_BESIDE_SCALED_SUMS = TileShape(128, 2, 4, 3)
"""The shape for 128 rows in fp8. Each sum needs a second register, for the sum of a group, so only one block fits on a
multiprocessor."""


def tile_shape(problem: GroupedProblem) -> TileShape:
    """The partition of a product's tile, whose rows have to be one of :data:`SHAPES`."""
    shape = SHAPES[problem.block_rows]
    if problem.in_fp8 and shape.rows == _BESIDE_SCALED_SUMS.rows:
        return _BESIDE_SCALED_SUMS
    # Codes are read only one k-tile ahead, whatever the number of stages. Fewer stages leave room for more blocks,
    # which hide more of that latency.
    return dataclasses.replace(shape, stages=2) if problem.decodes else shape


def k_tile_depth(dtype: str) -> int:
    """Inputs of a k-tile of elements of ``dtype``."""
    return SWIZZLE_BYTES // dtype_of(dtype).itemsize


@dataclasses.dataclass(frozen=True)
class Tile:
    """The tile of a block of threads as one thread sees it.

    ``warp_row`` and ``warp_column``: the beginning of its warp's rectangle; ``row_tiles`` and ``column_tiles`` [stages,
    rows or columns, depth]: k-tiles in shared memory; ``first_k_tile`` and ``end_k_tile``: the range of k-tiles to
    multiply, where None means up to the last input.
    """

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
        """The number of k-tiles to multiply."""
        end = -(-self.problem.inner // self.depth) if self.end_k_tile is None else self.end_k_tile
        return end - self.first_k_tile

    def has_column(self, column: Any) -> Any:
        """Whether the matrix has the column; the last tile may extend beyond the matrix."""
        return self._whole_tiles or column < self.problem.columns

    def column_or_last(self, column: Any) -> Any:
        """The column, or the last one of the matrix if it has no such column."""
        return column if self._whole_tiles else T.min(column, self.problem.columns - 1)

    @property
    def has_whole_steps(self) -> bool:
        """Whether the matrix always has all columns of an instruction, or none."""
        return self.problem.columns % MMA_COLUMNS == 0

    def step_or_last(self, column: Any) -> Any:
        """The first column of an instruction, or of the last one whose columns the matrix has. If the matrix may have
        some of an instruction's columns, it is returned unchanged; callers then test each column."""
        if self._whole_tiles or not self.has_whole_steps:
            return column
        return T.min(column, self.problem.columns - MMA_COLUMNS)

    def has_input(self, k: Any) -> Any:
        """Whether the rows have the input; the last k-tile may extend beyond the inputs."""
        return self._whole_k_tiles or k < self.problem.inner

    def chunk_or_last(self, k: Any) -> Any:
        """The first input of a chunk, or that of the last chunk of the rows if they have no such chunk."""
        return k if self._whole_k_tiles else T.min(k, self.problem.inner - self.chunk_inputs)

    @property
    def _whole_tiles(self) -> bool:
        return self.problem.columns % self.shape.columns == 0

    @property
    def _whole_k_tiles(self) -> bool:
        return self.problem.inner % self.depth == 0

    @property
    def chunk(self) -> Any:
        """The index of the chunk that this thread copies in each of its rows."""
        return self.thread % CHUNKS

    def first_input(self, k_tile: Any) -> Any:
        """The first input of this thread's chunk of a k-tile."""
        return k_tile * self.depth + self.chunk * self.chunk_inputs

    def copied_row(self, i: Any) -> Any:
        """The ``i``-th row (or column) of a k-tile that this thread copies."""
        return i * self.shape.rows_per_copy + self.thread // CHUNKS

    @property
    def place(self) -> Any:
        """The swizzled place of this thread's chunk within a row. It is the same in all of its rows, which are a
        multiple of 8 apart."""
        return (self.chunk ^ (self.thread // CHUNKS % 8)) * self.chunk_inputs
