"""Grouped matrix product without tensor cores: any size, any storage format, float32 multiply-adds.

A block of threads computes one block of rows times :data:`COLUMNS` columns. K-tiles of :data:`DEPTH` inputs of the rows
and of the matrix pass through shared memory in float32. There the input is the outermost axis, so that neighbouring
threads read neighbouring numbers. Each of the 16 x 16 threads keeps a tile of sums in registers: every 16th row and
every 16th column, or the gate and up columns of every 16th hidden unit if the product is gated.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from moec.targets.gpu.kernels.grouped_problem import (
    GATE_GROUP,
    GroupedProblem,
    KernelForm,
    Operands,
    grouped_kernel,
    load_number,
)
from moec.targets.gpu.kernels.instructions import sync_block
from moec.targets.gpu.kernels.tf32 import round_value
from moec.targets.gpu.kernels.tiled_kernels import tiled_kernels
from moec.targets.tvm.text.steps import begin_step

COLUMNS = 64
"""Columns of a tile, counting those of gate and up."""
DEPTH = 16
"""Inputs of a k-tile."""
SIDE = 16
"""Threads along the rows and along the columns of a tile."""
THREADS = SIDE * SIDE
_PADDING = 1
"""Trailing numbers of each line of a tile in shared memory, so that threads that store neighbouring inputs of a row use
different banks."""


def why_not(problem: GroupedProblem) -> str | None:
    """The reason why :func:`grouped_gemm_simt` cannot compute the problem, or None."""
    if problem.block_rows % SIDE:
        return f"blocks of {problem.block_rows} rows; a tile has {SIDE} threads along its rows"
    if problem.is_packed:
        return f"rows in {'fp8' if problem.scaling is None else problem.scaling.arithmetic}; expected floats"
    return problem.why_not_stored()


@dataclasses.dataclass(frozen=True)
class _SimtTile:
    """The tile of a block of threads. ``thread_row`` and ``thread_column``: the place of this thread among its 16 x 16
    threads."""

    operands: Operands
    block: Any
    expert: Any
    first_column: Any
    thread: Any
    thread_row: Any
    thread_column: Any

    @property
    def problem(self) -> GroupedProblem:
        return self.operands.problem

    @property
    def rows_per_thread(self) -> int:
        return self.problem.block_rows // SIDE

    @property
    def columns_per_thread(self) -> int:
        return COLUMNS // SIDE

    def row(self, i: Any) -> Any:
        """The ``i``-th row of this thread."""
        return self.thread_row + i * SIDE

    def column(self, j: Any) -> Any:
        """The ``j``-th column of this thread within the tile. If gated, even j are gates and odd j are up."""
        if not self.problem.gated:
            return self.thread_column + j * SIDE
        unit = self.thread_column + j // 2 * SIDE
        return unit // GATE_GROUP * (2 * GATE_GROUP) + unit % GATE_GROUP + j % 2 * GATE_GROUP

    def finished(self, total: Any, factor: Any, j: Any) -> Any:
        """The ``j``-th sum of a row of this thread with factor and bias, the argument of the epilogue."""
        return self.operands.finished(total, factor, self.expert, self.first_column + self.column(j))

    def output(self, j: Any) -> Any:
        """The output column of the ``j``-th sum (or pair of gate and up) of a row of this thread."""
        first = self.first_column // 2 if self.problem.gated else self.first_column
        return first + self.thread_column + j * SIDE


@T.inline
def _find_sources(tile, sources):
    """Look up the input rows of the tile's rows, into ``sources``; negative for padding."""
    for step in T.unroll(-(-tile.problem.block_rows // THREADS)):
        row: T.let = step * THREADS + tile.thread
        if row < tile.problem.block_rows:
            pair: T.let = tile.operands.pair(tile.block, row)
            sources[row] = -1
            if pair >= 0:
                sources[row] = tile.operands.source(pair, tile.block, row)
    sync_block()


@T.inline
def _load_tiles(tile, first_input, sources, row_tile, column_tile):
    """Load a k-tile of rows and of the matrix into shared memory. Padding rows, and missing inputs and columns, are
    zero."""
    operands, problem = T.meta_var(tile.operands), T.meta_var(tile.problem)
    number = T.alloc_local((1,), "float32")
    depth: T.let = tile.thread % DEPTH
    for i in T.unroll(problem.block_rows * DEPTH // THREADS):
        row: T.let = i * (THREADS // DEPTH) + tile.thread // DEPTH
        row_tile[depth, row] = T.float32(0)
        source: T.let = sources[row]
        if T.And(source >= 0, first_input + depth < problem.inner):
            number[0] = T.cast(operands.rows[T.cast(source, "int64"), first_input + depth], "float32")
            if problem.tf32:
                round_value(number, 0)
            row_tile[depth, row] = number[0]
    for i in T.unroll(COLUMNS * DEPTH // THREADS):
        column: T.let = i * (THREADS // DEPTH) + tile.thread // DEPTH
        column_tile[depth, column] = T.float32(0)
        if T.And(tile.first_column + column < problem.columns, first_input + depth < problem.inner):
            load_number(
                operands.matrix,
                tile.expert,
                tile.first_column + column,
                first_input + depth,
                column_tile,
                (depth, column),
            )


@T.inline
def _multiply_tiles(tile, row_tile, column_tile, sums):
    left = T.alloc_local((tile.rows_per_thread,), "float32")
    right = T.alloc_local((tile.columns_per_thread,), "float32")
    for depth in T.unroll(DEPTH):
        for i in T.unroll(tile.rows_per_thread):
            left[i] = row_tile[depth, tile.row(i)]
        for j in T.unroll(tile.columns_per_thread):
            right[j] = column_tile[depth, tile.column(j)]
        for i in T.unroll(tile.rows_per_thread):
            for j in T.unroll(tile.columns_per_thread):
                sums[i, j] = sums[i, j] + left[i] * right[j]


@T.inline
def _store(tile, epilogue, sums):
    operands, problem = T.meta_var(tile.operands), T.meta_var(tile.problem)
    for i in T.unroll(tile.rows_per_thread):
        pair: T.let = operands.pair(tile.block, tile.row(i))
        if pair >= 0:
            row: T.let = operands.destination(pair, tile.block, tile.row(i))
            factor: T.let = operands.factor(pair)
            if problem.gated:
                for j in T.unroll(tile.columns_per_thread // 2):
                    if tile.output(j) < problem.width:
                        gate: T.let = tile.finished(sums[i, 2 * j], factor, 2 * j)
                        up: T.let = tile.finished(sums[i, 2 * j + 1], factor, 2 * j + 1)
                        operands.out[row, tile.output(j)] = T.cast(epilogue(gate, up), problem.out_dtype)
            else:
                for j in T.unroll(tile.columns_per_thread):
                    if tile.output(j) < problem.width:
                        total: T.let = tile.finished(sums[i, j], factor, j)
                        operands.out[row, tile.output(j)] = T.cast(epilogue(total), problem.out_dtype)


def grouped_gemm_simt(
    problem: GroupedProblem, epilogue: Callable[..., Any], form: KernelForm = grouped_kernel
) -> tirx.PrimFunc:
    """The kernel with the parameters of :func:`~moec.targets.gpu.kernels.grouped_problem.grouped_kernel`, or of
    another ``form``. ``epilogue``: from float32 sums to an output, ``f(gate, up)`` if gated, else ``f(sum)``."""
    tiles = -(-problem.columns // COLUMNS)

    @T.inline
    def body(operands):
        T.device_entry()
        index = T.cta_id([T.max(operands.blocks, 1) * tiles])
        thread = T.thread_id([THREADS])
        row_tile = T.alloc_shared((DEPTH, problem.block_rows + _PADDING), "float32")
        column_tile = T.alloc_shared((DEPTH, COLUMNS + _PADDING), "float32")
        sources = T.alloc_shared((problem.block_rows,), "int32")
        # All tiles of a block of rows come first, then those of the next block, which often has the same expert.
        block: T.let = index // tiles
        first_column: T.let = index % tiles * COLUMNS
        thread_row: T.let = thread // SIDE
        thread_column: T.let = thread % SIDE
        if operands.is_used(block):
            expert: T.let = operands.expert(block)
            tile = T.meta_var(_SimtTile(operands, block, expert, first_column, thread, thread_row, thread_column))
            sums = T.alloc_local((tile.rows_per_thread, tile.columns_per_thread), "float32")
            _find_sources(tile, sources)
            for i in T.unroll(tile.rows_per_thread):
                for j in T.unroll(tile.columns_per_thread):
                    sums[i, j] = T.float32(0)
            for k_tile in T.serial(-(-problem.inner // DEPTH)):
                begin_step("tiles of rows and columns, copied to shared memory")
                _load_tiles(tile, k_tile * DEPTH, sources, row_tile, column_tile)
                sync_block()
                begin_step("products of the tiles")
                _multiply_tiles(tile, row_tile, column_tile, sums)
                sync_block()
            begin_step("bias and activation of the sums, stored")
            _store(tile, epilogue, sums)

    return form(problem, body)


GROUPED_GEMM_SIMT, GEMM_SIMT = tiled_kernels(
    "gemm_simt",
    grouped_gemm_simt,
    how=lambda problem: "float32 multiply-adds, k-tiles in shared memory, any size",
    why_not=lambda problem, _: why_not(problem),
    tile=lambda problem: (problem.block_rows, COLUMNS, DEPTH),
)
