"""Grouped matrix product on tensor cores (compute capability 8.0 and up): 16-bit floats, float32 sums.

A block of threads computes one block of rows times :data:`COLUMNS` columns. Panels of :data:`DEPTH` inputs come into
shared memory by asynchronous copies of 16 bytes, several stages ahead of the products. A warp computes a rectangle of
the tile: ``ldmatrix`` brings 16 x 16 pieces of rows and columns into the registers in the order that
``mma.sync.m16n8k16`` wants, which adds their product to 16 x 8 sums.

A line of a panel has eight pieces of 16 bytes. Piece p of line r lies at place ``p ^ (r % 8)``, so that the eight lines
that ldmatrix reads at once lie in different banks, as do the eight pieces of a line when they are written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.backend.cuda.lang import SMEMPool
from tvm.script import tirx as T

from moec.targets.cuda.kernels.grouped_problem import GroupedProblem, Operands, grouped_kernel
from moec.targets.cuda.kernels.launch import WARP

COLUMNS = 128
"""Columns of a tile, those of gate and up both counted."""
DEPTH = 64
"""Inputs of a panel: a line of 128 bytes."""
_PIECE = 8
"""Elements of the 16 bytes that are copied at once."""
_PIECES = DEPTH // _PIECE
_MMA_ROWS, _MMA_COLUMNS, _MMA_DEPTH = 16, 8, 16
_ELEMENTS = {"float16": "f16", "bfloat16": "bf16"}
_COPY = "cp.async.cg.shared.global.L2::128B"
_LOAD_FRAGMENTS = "ldmatrix.sync.aligned.m8n8.x4.shared.b16"


@dataclasses.dataclass(frozen=True)
class TileShape:
    """How the work of a tile is shared: warps along its rows and columns, and panels that are in flight or in use."""

    rows: int
    row_warps: int
    column_warps: int
    stages: int

    @property
    def threads(self) -> int:
        return self.row_warps * self.column_warps * WARP

    @property
    def row_steps(self) -> int:
        """Multiplications of a warp along its rows."""
        return self.rows // self.row_warps // _MMA_ROWS

    @property
    def column_steps(self) -> int:
        """Multiplications of a warp along its columns."""
        return COLUMNS // self.column_warps // _MMA_COLUMNS

    @property
    def lines_per_copy(self) -> int:
        """Lines of a panel that the threads copy at once, one piece each."""
        return self.threads // _PIECES

    @property
    def shared_bytes(self) -> int:
        return self.stages * (self.rows + COLUMNS) * DEPTH * 2


SHAPES = {shape.rows: shape for shape in (TileShape(16, 1, 4, 4), TileShape(64, 2, 4, 4), TileShape(128, 2, 4, 3))}
"""By rows of a block. Shared memory is at most 96 KiB, which all GPUs since 8.0 have."""


def why_not(problem: GroupedProblem) -> str | None:
    """The reason why :func:`grouped_gemm_mma` cannot compute the problem, or None."""
    if problem.dtype not in _ELEMENTS or problem.matrix_dtype != problem.dtype:
        return (
            f"{problem.dtype} rows and a {problem.matrix_dtype} matrix; tensor cores take float16 or bfloat16 for both"
        )
    if problem.block_rows not in SHAPES:
        return f"blocks of {problem.block_rows} rows; there are tiles of {', '.join(map(str, SHAPES))}"
    if problem.inner % DEPTH:
        return f"{problem.inner} inputs are no multiple of {DEPTH}"
    if problem.columns % COLUMNS:
        return f"{problem.columns} columns are no multiple of {COLUMNS}"
    if problem.gated and problem.columns != 2 * problem.width:
        return f"{problem.width} hidden units are no multiple of 8"
    return problem.why_not_stored()


@dataclasses.dataclass(frozen=True)
class _Tile:
    """What a thread knows of its tile. ``warp_row`` and ``warp_column``: where the rectangle of its warp begins.
    ``row_panels`` and ``column_panels`` [stages, lines, DEPTH] are shared."""

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

    @property
    def problem(self) -> GroupedProblem:
        return self.operands.problem

    @property
    def piece(self) -> Any:
        """Which piece of its lines this thread copies."""
        return self.thread % _PIECES

    def line(self, i: Any) -> Any:
        """The ``i``-th line that this thread copies to."""
        return i * self.shape.lines_per_copy + self.thread // _PIECES

    @property
    def place(self) -> Any:
        """Where its piece goes within a line; the same in all its lines, for they are a multiple of 8 apart."""
        return (self.piece ^ (self.thread // _PIECES % 8)) * _PIECE


@T.inline
def _find_sources(tile, sources, bytes_copied):
    """Rows of the input that this thread copies from. Padding copies no byte, which fills its line with zeros."""
    for i in T.unroll(tile.shape.rows // tile.shape.lines_per_copy):
        pair: T.let = tile.operands.pair(tile.block, tile.line(i))
        sources[i] = T.int64(0)
        bytes_copied[i] = T.uint32(0)
        if pair >= 0:
            sources[i] = tile.operands.source(pair, tile.block, tile.line(i))
            bytes_copied[i] = T.uint32(16)


@T.inline
def _start_copies(tile, stage, panel, sources, bytes_copied):
    operands = T.meta_var(tile.operands)
    first_input: T.let = panel * DEPTH + tile.piece * _PIECE
    for i in T.unroll(tile.shape.rows // tile.shape.lines_per_copy):
        T.ptx[_COPY](
            tile.row_panels.ptr_to([stage, tile.line(i), tile.place]),
            operands.rows.ptr_to([sources[i], first_input]),
            16,
            bytes_copied[i],
        )
    for i in T.unroll(COLUMNS // tile.shape.lines_per_copy):
        T.ptx[_COPY](
            tile.column_panels.ptr_to([stage, tile.line(i), tile.place]),
            operands.matrix.ptr_to([T.cast(tile.expert, "int64"), tile.first_column + tile.line(i), first_input]),
            16,
        )


@T.inline
def _load_row_fragments(tile, stage, step, left):
    """Lanes 0 to 15 point at the first 8 inputs of 16 rows, the others at the next 8."""
    for i in T.unroll(tile.shape.row_steps):
        T.ptx[_LOAD_FRAGMENTS](
            left[i, 0],
            left[i, 1],
            left[i, 2],
            left[i, 3],
            tile.row_panels.ptr_to(
                [
                    stage,
                    tile.warp_row + i * _MMA_ROWS + tile.lane % 16,
                    ((step * 2 + tile.lane // 16) ^ (tile.lane % 8)) * _PIECE,
                ]
            ),
        )


@T.inline
def _load_column_fragments(tile, stage, step, right):
    """Two multiplications' columns at once: lanes 0 to 15 point at both halves of the inputs of 8 columns, the others
    at those of the next 8."""
    for j in T.unroll(tile.shape.column_steps // 2):
        T.ptx[_LOAD_FRAGMENTS](
            right[2 * j, 0],
            right[2 * j, 1],
            right[2 * j + 1, 0],
            right[2 * j + 1, 1],
            tile.column_panels.ptr_to(
                [
                    stage,
                    tile.warp_column + j * 2 * _MMA_COLUMNS + tile.lane // 16 * 8 + tile.lane % 8,
                    ((step * 2 + tile.lane // 8 % 2) ^ (tile.lane % 8)) * _PIECE,
                ]
            ),
        )


@T.inline
def _multiply_panel(tile, stage, left, right, sums):
    element = T.meta_var(_ELEMENTS[tile.problem.dtype])
    for step in T.unroll(DEPTH // _MMA_DEPTH):
        _load_row_fragments(tile, stage, step, left)
        _load_column_fragments(tile, stage, step, right)
        for i in T.unroll(tile.shape.row_steps):
            for j in T.unroll(tile.shape.column_steps):
                T.ptx[f"mma.sync.aligned.m16n8k16.row.col.f32.{element}.{element}.f32"](
                    sums[i, j, 0],
                    sums[i, j, 1],
                    sums[i, j, 2],
                    sums[i, j, 3],
                    left[i, 0],
                    left[i, 1],
                    left[i, 2],
                    left[i, 3],
                    right[j, 0],
                    right[j, 1],
                    sums[i, j, 0],
                    sums[i, j, 1],
                    sums[i, j, 2],
                    sums[i, j, 3],
                )


@T.inline
def _multiply(tile, left, right, sums, sources, bytes_copied):
    """All panels, a ring of stages: while one is multiplied, the next ones are on their way."""
    stages = T.meta_var(tile.shape.stages)
    panels = T.meta_var(tile.problem.inner // DEPTH)
    reading = T.alloc_local((1,), "int32")
    writing = T.alloc_local((1,), "int32")
    for stage in T.unroll(stages - 1):
        if stage < panels:
            _start_copies(tile, stage, stage, sources, bytes_copied)
        T.ptx.cp.async_.commit_group()
    reading[0] = 0
    writing[0] = stages - 1
    for panel in T.serial(panels):
        # This thread's copies of the panel are complete, and then those of all; and all have left the stage before it.
        T.ptx.cp.async_.wait_group(stages - 2)
        T.cuda.cta_sync()
        if panel + (stages - 1) < panels:
            _start_copies(tile, writing[0], panel + (stages - 1), sources, bytes_copied)
        # A group for every panel, an empty one at the end, so that the count of groups in flight stays the same.
        T.ptx.cp.async_.commit_group()
        _multiply_panel(tile, reading[0], left, right, sums)
        reading[0] = T.Select(reading[0] == stages - 1, 0, reading[0] + 1)
        writing[0] = T.Select(writing[0] == stages - 1, 0, writing[0] + 1)
    T.ptx.cp.async_.wait_group(0)


@T.inline
def _store_row(tile, epilogue, i, lower, pair, row, sums):
    """Two neighbouring outputs of each multiplication; where gated, of each two: one of gates, one of up."""
    operands, problem = T.meta_var(tile.operands), T.meta_var(tile.problem)
    values = T.alloc_local((2,), "float32")
    factor: T.let = operands.factor(pair)
    for j in T.unroll(tile.shape.column_steps // (2 if problem.gated else 1)):
        if problem.gated:
            column: T.let = tile.first_column + tile.warp_column + 2 * j * _MMA_COLUMNS + tile.lane % 4 * 2
            output: T.let = (tile.first_column + tile.warp_column) // 2 + j * _MMA_COLUMNS + tile.lane % 4 * 2
            for v in T.unroll(2):
                gate: T.let = operands.finished(sums[i, 2 * j, lower * 2 + v], factor, tile.expert, column + v)
                up: T.let = operands.finished(
                    sums[i, 2 * j + 1, lower * 2 + v], factor, tile.expert, column + _MMA_COLUMNS + v
                )
                values[v] = epilogue(gate, up)
            for v in T.vectorized(2):
                operands.out[row, output + v] = T.cast(values[v], problem.out_dtype)
        else:
            column: T.let = tile.first_column + tile.warp_column + j * _MMA_COLUMNS + tile.lane % 4 * 2
            for v in T.unroll(2):
                total: T.let = operands.finished(sums[i, j, lower * 2 + v], factor, tile.expert, column + v)
                values[v] = epilogue(total)
            for v in T.vectorized(2):
                operands.out[row, column + v] = T.cast(values[v], problem.out_dtype)


@T.inline
def _store(tile, epilogue, sums):
    """A lane has sums of two rows of every multiplication, 8 rows apart."""
    for i in T.unroll(tile.shape.row_steps):
        for lower in T.unroll(2):
            line: T.let = tile.warp_row + i * _MMA_ROWS + lower * 8 + tile.lane // 4
            pair: T.let = tile.operands.pair(tile.block, line)
            if pair >= 0:
                row: T.let = tile.operands.destination(pair, tile.block, line)
                _store_row(tile, epilogue, i, lower, pair, row, sums)


@T.inline
def _compute_tile(tile, epilogue):
    shape = T.meta_var(tile.shape)
    sources = T.alloc_local((shape.rows // shape.lines_per_copy,), "int64")
    bytes_copied = T.alloc_local((shape.rows // shape.lines_per_copy,), "uint32")
    left = T.alloc_local((shape.row_steps, 4), "uint32")
    right = T.alloc_local((shape.column_steps, 2), "uint32")
    sums = T.alloc_local((shape.row_steps, shape.column_steps, 4), "float32")
    for i in T.unroll(shape.row_steps):
        for j in T.unroll(shape.column_steps):
            for v in T.unroll(4):
                sums[i, j, v] = T.float32(0)
    _find_sources(tile, sources, bytes_copied)
    _multiply(tile, left, right, sums, sources, bytes_copied)
    _store(tile, epilogue, sums)


def grouped_gemm_mma(problem: GroupedProblem, epilogue: Callable[..., Any]) -> tirx.PrimFunc:
    """The kernel of :func:`~moec.targets.cuda.kernels.grouped_problem.grouped_kernel`. ``epilogue`` turns float32 sums
    into an output: ``f(gate, up)`` where gated, else ``f(sum)``."""
    shape, tiles = SHAPES[problem.block_rows], problem.columns // COLUMNS
    row_lines, column_lines = shape.rows // shape.row_warps, COLUMNS // shape.column_warps

    @T.inline
    def body(operands):
        index = T.cta_id([T.max(operands.blocks, 1) * tiles])
        thread = T.thread_id([shape.threads])
        pool = SMEMPool()
        row_panels = pool.alloc((shape.stages, shape.rows, DEPTH), problem.dtype, align=128)
        column_panels = pool.alloc((shape.stages, COLUMNS, DEPTH), problem.dtype, align=128)
        pool.commit()
        # All tiles of a block of rows, then those of the next block, which often has the same expert.
        block: T.let = index // tiles
        first_column: T.let = index % tiles * COLUMNS
        lane: T.let = thread % WARP
        warp_row: T.let = thread // WARP // shape.column_warps * row_lines
        warp_column: T.let = thread // WARP % shape.column_warps * column_lines
        if block < operands.block_count[0]:
            expert: T.let = operands.block_experts[block]
            tile = T.meta_var(
                _Tile(
                    operands,
                    shape,
                    block,
                    expert,
                    first_column,
                    thread,
                    lane,
                    warp_row,
                    warp_column,
                    row_panels,
                    column_panels,
                )
            )
            _compute_tile(tile, epilogue)

    return grouped_kernel(problem, body)
