"""Grouped matrix product: every block of rows times the weights of its own expert.

``out[r] = epilogue(bias[e] + rows[r] @ weights[e])`` for the rows r of every block of expert e. Rows are sorted by
expert; the list of blocks comes from :mod:`moec.targets.cpu.kernels.dispatch`.

A task is one block of rows times one tile of columns. The weights of the tile (K x two vectors, contiguous) are read from
memory once and stay in second-level cache while the rows of the block pass by in register tiles. The rows of a block
are cut into register tiles of nearly equal height, with code for every height up to the machine's row tile: no row is
computed in vain, and an expert with one row runs a matrix-vector product that streams its weights exactly once. Tasks
are dealt to the threads in turn, column tiles varying fastest, so that all threads share every expert's weights however
skewed the routing is. An output is one running sum over K in a register: its value depends neither on the height of its
tile nor on the number of threads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from moec.targets.cpu.machine import Machine
from tvm import tirx
from tvm.script import tirx as T


@dataclasses.dataclass(frozen=True)
class GroupedProblem:
    """Static sizes of a grouped product. ``width`` counts the outputs of a row: the columns of the weights, or the hidden
    units where a gate and an up column make one output (``gated``)."""

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


@dataclasses.dataclass(frozen=True)
class _Operands:
    """What a register tile works on, and how it finishes its sums."""

    problem: GroupedProblem
    rows: tirx.Buffer
    order: tirx.Buffer
    weights: tirx.Buffer
    bias: tirx.Buffer
    out: tirx.Buffer
    epilogue: Callable[..., Any]
    scattered: bool

    def result(self, sums: tirx.Buffer, row: Any, column: Any) -> Any:
        if self.problem.gated:
            return self.epilogue(sums[row, column], sums[row, column + self.problem.tile_width])
        return self.epilogue(sums[row, column])


@T.inline
def _register_tile(height, operands, expert, column_tile, first):
    sums = T.alloc_buffer((height, operands.problem.columns), "float32", scope="local")
    for i in T.unroll(height):
        for j in T.vectorized(operands.problem.columns):
            sums[i, j] = operands.bias[expert, column_tile, j]
    for k in T.serial(operands.problem.inner):
        for i in T.unroll(height):
            for j in T.vectorized(operands.problem.columns):
                sums[i, j] = sums[i, j] + operands.rows[first + i, k] * T.cast(
                    operands.weights[expert, column_tile, k, j], "float32"
                )
    for i in T.unroll(height):
        target: T.let = T.cast(operands.order[first + i], "int64") if operands.scattered else first + i
        for j in T.vectorized(operands.problem.tile_width):
            operands.out[target, column_tile * operands.problem.tile_width + j] = operands.result(sums, i, j)


def _emit_height(largest: int, height: Any, *arguments: Any) -> None:
    """Code for every height from 1 to ``largest``, the one that fits chosen when the kernel runs."""
    if largest == 1:
        _register_tile(1, *arguments)
        return
    with T.If(height == largest):
        with T.Then():
            _register_tile(largest, *arguments)
        with T.Else():
            _emit_height(largest - 1, height, *arguments)


def grouped_gemm(
    problem: GroupedProblem, epilogue: Callable[..., Any], *, input_width: int, scattered: bool
) -> tirx.PrimFunc:
    """``(rows[P, input_width], order[P], blocks[B, 3], block_count[1], weights, bias, out[P, padded_width])``.

    The first K of the ``input_width`` columns of ``rows`` are used. ``epilogue(gate, up)`` of a gated problem, else
    ``epilogue(sum)``, maps expressions to an expression. The result of row r goes to row ``order[r]`` if ``scattered`` (back to
    the order of the pairs), else to row r. Rows in no block are not written. P and B may be 0.
    """
    column_tiles, row_tile = problem.column_tiles, problem.machine.row_tile

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
        out = T.match_buffer(out_handle, (P, problem.padded_width), "float32", align=64)
        operands = T.meta_var(_Operands(problem, rows, order, weights, bias, out, epilogue, scattered))
        with T.attr(0, "pragma_parallel_launch_point", 1):
            with T.attr(0, "pragma_parallel_stride_pattern", 1):  # task i runs on thread i % threads
                for task in T.parallel(T.cast(block_count[0], "int64") * column_tiles):
                    column_tile: T.let = task % column_tiles
                    expert: T.let = T.cast(blocks[task // column_tiles, 0], "int64")
                    first: T.let = T.cast(blocks[task // column_tiles, 1], "int64")
                    count: T.let = T.cast(blocks[task // column_tiles, 2], "int64")
                    tiles: T.let = (count + (row_tile - 1)) // row_tile
                    for t in T.serial(tiles):
                        start: T.let = t * count // tiles
                        height: T.let = (t + 1) * count // tiles - start
                        _emit_height(row_tile, height, operands, expert, column_tile, first + start)

    return kernel
