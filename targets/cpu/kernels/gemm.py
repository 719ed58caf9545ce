"""Matrix product with a weight known at compile time: ``y[M, N] = x[M, K] @ w[K, N] + bias[N]``.

M is dynamic (0 and up), K and N are static and of any size. The weight is packed once, at compile time, into column
tiles ``[ceil(N / columns), K, columns]`` (the last one padded with zeros), so that every load of a weight is an aligned
vector and the weight is read in one forward stream.

The inner loop keeps a block of ``row_tile x column_tile`` sums in registers and adds one rank-1 update per step of k:
per step ``row_tile`` broadcasts and ``column_tile / lanes`` vector loads feed ``row_tile * column_tile`` multiply-adds
(Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication", 2008). Rows left over are handled by lower
blocks of 8, 4, 2 and 1 rows.

Tasks are (block of rows, column tile) pairs with the column tile running fastest: with few rows the threads share the
weight's columns and each streams its part once; with many rows a block of x stays in the second-level cache.
Every sum runs over k in ascending order in one accumulator: results depend neither on the number of threads nor on M.
"""

from __future__ import annotations

import numpy as np
from moec.targets.cpu.kernels.emit import power_of_two_parts, vector_parts
from moec.targets.cpu.machine import Machine
from tvm import tirx
from tvm.script import tirx as T

ROW_TILES_PER_TASK = 16


def packed_shape(inner: int, columns: int, machine: Machine) -> tuple[int, int, int]:
    """Shape of the packed weight: column tiles, K, columns per tile (fewer than a whole tile if N is small)."""
    width = min(machine.column_tile, -(-columns // machine.lanes) * machine.lanes)
    return (-(-columns // width), inner, width)


def pack(weight: np.ndarray, machine: Machine) -> np.ndarray:
    """Bring a weight [K, N] into tile order [tiles, K, columns per tile]; missing columns are zero."""
    inner, columns = weight.shape
    tiles, _, width = packed_shape(inner, columns, machine)
    padded = np.zeros((inner, tiles * width), weight.dtype)
    padded[:, :columns] = weight
    return np.ascontiguousarray(padded.reshape(inner, tiles, width).transpose(1, 0, 2))


@T.inline
def _store_columns(sums, bias, y, row, first_column, height, start, count):
    for i in T.unroll(height):
        for j in T.vectorized(count):
            y[row + i, first_column + start + j] = T.cast(
                sums[i, start + j] + T.cast(bias[first_column + start + j], "float32"), y.dtype
            )


def _store_tile(sums, bias, y, row, tile, height: int) -> None:
    """Emit ``y = sums + bias``, leaving out the columns that only pad the last tile."""
    width, columns = int(sums.shape[1]), int(y.shape[1])
    full_tiles = columns // width
    if columns % width == 0:
        _store_columns(sums, bias, y, row, tile * width, height, 0, width)
        return
    with T.If(tile < full_tiles):
        with T.Then():
            _store_columns(sums, bias, y, row, tile * width, height, 0, width)
        with T.Else():
            for start, count in vector_parts(columns % width):
                _store_columns(sums, bias, y, row, full_tiles * width, height, start, count)


@T.inline
def _multiply_tile(x, weight, bias, y, row, tile, height):
    sums = T.alloc_buffer((height, weight.shape[2]), "float32", scope="local")
    for i in T.unroll(height):
        for j in T.vectorized(weight.shape[2]):
            sums[i, j] = T.float32(0)
    for k in range(weight.shape[1]):
        for i in T.unroll(height):
            for j in T.vectorized(weight.shape[2]):
                sums[i, j] = sums[i, j] + T.cast(x[row + i, k], "float32") * T.cast(weight[tile, k, j], "float32")
    _store_tile(sums, bias, y, row, tile, height)


def _multiply_rest(x, weight, bias, y, first, rest, tile, height: int) -> None:
    """Emit the rows below the last whole row tile: ``rest`` (less than ``height``) in binary, largest part first."""
    for part in power_of_two_parts(height - 1):
        with T.If(rest // part % 2 == 1), T.Then():
            _multiply_tile(x, weight, bias, y, first + rest // (2 * part) * (2 * part), tile, part)


def gemm(inner: int, columns: int, machine: Machine, dtype: str = "float32") -> tirx.PrimFunc:
    """The kernel ``(x[M, K], packed weight, bias[N], y[M, N])``; ``dtype`` is how all are stored, sums are float32."""
    tiles, _, width = packed_shape(inner, columns, machine)
    height = machine.row_tile
    block = height * ROW_TILES_PER_TASK

    @T.prim_func(s_tir=True)
    def kernel(x_handle: T.handle, weight_handle: T.handle, bias_handle: T.handle, y_handle: T.handle):
        T.func_attr({"tirx.noalias": True})
        M = T.int64()
        x = T.match_buffer(x_handle, (M, inner), dtype, align=64)
        weight = T.match_buffer(weight_handle, (tiles, inner, width), dtype, align=64)
        bias = T.match_buffer(bias_handle, (columns,), dtype, align=64)
        y = T.match_buffer(y_handle, (M, columns), dtype, align=64)
        for task in T.parallel(T.ceildiv(M, block) * tiles):
            tile: T.let[T.int64] = task % tiles
            first: T.let[T.int64] = task // tiles * block
            rows: T.let[T.int64] = T.min(block, M - first)
            for index in range(rows // height):
                _multiply_tile(x, weight, bias, y, first + index * height, tile, height)
            rest: T.let[T.int64] = rows % height
            _multiply_rest(x, weight, bias, y, first + rows - rest, rest, tile, height)

    return kernel
