"""Grouped matrix product: every block of rows times the weights of its own expert.

``out[r] = epilogue(bias[e] + rows[r] @ weights[e])`` for the rows r of every block of expert e. Rows are sorted by
expert; the list of blocks comes from :mod:`moec.targets.cpu.kernels.dispatch`.

A task is one block of rows times one tile of columns. The weights of the tile (K x two vectors, contiguous) are read
from memory once, prefetched, and stay in second-level cache while the rows of the block pass by in register tiles.
The rows of a block are cut into register tiles of nearly equal height, with code for every height up to the machine's
row tile: no row is computed in vain, and an expert with one row runs a matrix-vector product that streams its weights
exactly once. Tasks are dealt to the threads in turn, column tiles varying fastest, so that all threads share every
expert's weights however skewed the routing is. An output is one running sum over K in a register: its value depends
neither on the height of its tile nor on the number of threads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from moec.targets.cpu.kernels.dispatch import BLOCK_ROWS
from moec.targets.cpu.kernels.gather import row_width
from moec.targets.cpu.kernels.register_tile import accumulate, emit_row_tiles
from moec.targets.cpu.machine import Machine


@dataclasses.dataclass(frozen=True)
class GroupedProblem:
    """Static sizes of a grouped product. ``width`` counts the outputs of a row: the columns of the weights, or the
    hidden units where a gate and an up column make one output (``gated``)."""

    experts: int
    inner: int
    width: int
    gated: bool
    machine: Machine
    weight_dtype: str = "float32"

    @property
    def columns(self) -> int:
        """Columns of weights per tile; the first half are gate columns, the second up columns, where gated."""
        return self.machine.column_tile

    @property
    def tile_width(self) -> int:
        """Outputs per tile."""
        return self.columns // 2 if self.gated else self.columns

    @property
    def column_tiles(self) -> int:
        return -(-self.width // self.tile_width)

    @property
    def padded_width(self) -> int:
        return self.column_tiles * self.tile_width

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return (self.experts, self.column_tiles, self.inner, self.columns)

    @property
    def bias_shape(self) -> tuple[int, int, int]:
        return (self.experts, self.column_tiles, self.columns)


def _emit_sums(problem: GroupedProblem, rows, weights, sums, expert, column_tile, first, count) -> None:
    """Emit ``sums[r] = rows[first + r] @ weights[expert, column_tile]`` for r below ``count``."""

    def emit(row: Any, height: int) -> None:
        tile = accumulate(
            height,
            problem.columns,
            problem.inner,
            lambda i, k: rows[first + row + i, k],
            lambda k, j: weights[expert, column_tile, k, j],
            streamed=True,
        )
        for i, total in tile.rows():
            with T.vectorized(problem.columns) as j:
                T.buffer_store(sums, total[j], [row + i, j])

    emit_row_tiles(count, problem.machine.row_tile, emit)


def _finished(problem: GroupedProblem, epilogue: Callable[..., Any], sums, bias, row, column) -> Any:
    """The output of one row and column of a tile."""
    if not problem.gated:
        return epilogue(sums[row, column] + bias(column))
    up = column + problem.tile_width
    return epilogue(sums[row, column] + bias(column), sums[row, up] + bias(up))


def grouped_gemm(
    problem: GroupedProblem, epilogue: Callable[..., Any], *, input_width: int, scattered: bool
) -> tirx.PrimFunc:
    """``(rows[P, input_width], order[P], blocks[B, 3], block_count[1], weights, bias, out[P, out_width])``, where
    ``out_width`` is ``row_width(padded_width)``.

    The first K of the ``input_width`` columns of ``rows`` are used. ``epilogue(gate, up)`` of a gated problem, else
    ``epilogue(sum)``, maps expressions to an expression. The result of row r goes to row ``order[r]`` if ``scattered``
    (back to the order of the pairs), else to row r. Rows in no block are not written. P and B may be 0.
    """
    column_tiles = problem.column_tiles

    @T.prim_func(s_tir=True)
    def kernel(
        rows_handle: T.handle,
        order_handle: T.handle,
        blocks_handle: T.handle,
        count_handle: T.handle,
        weights_handle: T.handle,
        bias_handle: T.handle,
        out_handle: T.handle,
    ):
        T.func_attr({"tirx.noalias": True})
        P = T.int64()
        B = T.int64()
        rows = T.match_buffer(rows_handle, (P, input_width), "float32", align=64)
        order = T.match_buffer(order_handle, (P,), "int32", align=64)
        blocks = T.match_buffer(blocks_handle, (B, 3), "int32", align=64)
        block_count = T.match_buffer(count_handle, (1,), "int32", align=64)
        weights = T.match_buffer(weights_handle, problem.weight_shape, problem.weight_dtype, align=64)
        bias = T.match_buffer(bias_handle, problem.bias_shape, "float32", align=64)
        out = T.match_buffer(out_handle, (P, row_width(problem.padded_width)), "float32", align=64)
        with T.attr(0, "pragma_parallel_launch_point", 1), T.attr(0, "pragma_parallel_stride_pattern", 1):
            for task in T.parallel(T.cast(block_count[0], "int64") * column_tiles):  # task i on thread i % threads
                column_tile: T.let = task % column_tiles
                expert: T.let = T.cast(blocks[task // column_tiles, 0], "int64")
                first: T.let = T.cast(blocks[task // column_tiles, 1], "int64")
                count: T.let = T.cast(blocks[task // column_tiles, 2], "int64")
                sums = T.alloc_buffer((BLOCK_ROWS, problem.columns), "float32")
                _emit_sums(problem, rows, weights, sums, expert, column_tile, first, count)
                for row in T.serial(count):
                    target: T.let = T.cast(order[first + row], "int64") if scattered else first + row
                    for j in T.vectorized(problem.tile_width):
                        out[target, column_tile * problem.tile_width + j] = _finished(
                            problem, epilogue, sums, lambda column: bias[expert, column_tile, column], row, j
                        )

    return kernel
