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
LINE_BYTES = 128
"""The bytes of a line of a panel."""
PIECES = 8
"""Pieces of a line: the 16 bytes that are copied at once."""
DEPTH = 64
"""Inputs of a panel of 16-bit floats."""
PIECE = DEPTH // PIECES
"""Their number in a piece."""
MMA_ROWS, MMA_COLUMNS, MMA_DEPTH = 16, 8, 16
"""Sizes of one instruction for 16-bit floats."""
MMA_STEPS = DEPTH // MMA_DEPTH
"""Instructions along a panel, of any type: an instruction takes two pieces of a line."""


@dataclasses.dataclass(frozen=True)
class TileShape:
    """How the work of a tile is shared: warps along its rows and columns, and panels that are in flight or in use.
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
    def lines_per_copy(self) -> int:
        """Lines of a panel that the threads copy at once, one piece each."""
        return self.threads // PIECES

    @property
    def shared_bytes(self) -> int:
        return self.stages * (self.rows + self.columns) * LINE_BYTES


SHAPES = {shape.rows: shape for shape in (TileShape(16, 1, 4, 4), TileShape(64, 2, 2, 2), TileShape(128, 2, 2, 2))}
"""By rows of a block. An A100's multiprocessor holds two or more blocks of 64 and of 128 rows at once: one multiplies
while another waits for its panel or stores, which is also why two stages are enough. Tiles of 16 rows may be too few
for that, and have more panels on their way.

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
    # What is decoded is read a panel ahead, however many stages there are; more blocks fill more of that wait.
    return dataclasses.replace(shape, stages=2) if problem.decodes else shape


def panel_depth(dtype: str) -> int:
    """Inputs of a panel of that type."""
    return LINE_BYTES // dtype_of(dtype).itemsize


@dataclasses.dataclass(frozen=True)
class Tile:
    """What a thread knows of its tile. ``warp_row`` and ``warp_column``: where the rectangle of its warp begins.
    ``row_panels`` and ``column_panels`` [stages, lines, depth] are shared. The tile's panels are those from
    ``first_panel`` to before ``end_panel``, or to the last of all inputs."""

    operands: Operands
    shape: TileShape
    block: Any
    expert: Any
    first_column: Any
    thread: Any
    lane: Any
    warp_row: Any
    warp_column: Any
    row_panels: Any
    column_panels: Any
    first_panel: Any = 0
    end_panel: Any = None

    @property
    def problem(self) -> GroupedProblem:
        return self.operands.problem

    @property
    def depth(self) -> int:
        """Inputs of a panel."""
        return panel_depth(self.problem.dtype)

    @property
    def piece_inputs(self) -> int:
        return self.depth // PIECES

    @property
    def panels(self) -> Any:
        """How many are multiplied."""
        end = -(-self.problem.inner // self.depth) if self.end_panel is None else self.end_panel
        return end - self.first_panel

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
        """Whether the rows have it: the last panel may be deeper than what is left."""
        return self._whole_panels or k < self.problem.inner

    def piece_or_last(self, k: Any) -> Any:
        """The first input of a piece that the rows have."""
        return k if self._whole_panels else T.min(k, self.problem.inner - self.piece_inputs)

    @property
    def _whole_tiles(self) -> bool:
        return self.problem.columns % self.shape.columns == 0

    @property
    def _whole_panels(self) -> bool:
        return self.problem.inner % self.depth == 0

    @property
    def piece(self) -> Any:
        """Which piece of its lines this thread copies."""
        return self.thread % PIECES

    def first_input(self, panel: Any) -> Any:
        """The first input of the piece that this thread copies of a panel."""
        return panel * self.depth + self.piece * self.piece_inputs

    def line(self, i: Any) -> Any:
        """The ``i``-th line that this thread copies to."""
        return i * self.shape.lines_per_copy + self.thread // PIECES

    @property
    def place(self) -> Any:
        """Where its piece goes within a line; the same in all its lines, for they are a multiple of 8 apart."""
        return (self.piece ^ (self.thread // PIECES % 8)) * self.piece_inputs
