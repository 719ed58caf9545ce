"""Matrix product with a weight known at compile time: ``y[M, N] = x[M, K] @ w[K, N] + bias[N]``.

M is dynamic (0 and up), K and N are static and of any size. The weight is packed once, at compile time, into column
tiles ``[ceil(N / columns), K, columns]`` (the last one padded with zeros), so that every load of a weight is an aligned
vector and the weight is read in one forward stream.

Tasks are (block of rows, column tile) pairs with the column tile running fastest: with few rows the threads share the
weight's columns and each streams its part once; with many rows a block of x stays in the second-level cache.
Every sum runs over k in ascending order in one accumulator: results depend neither on the number of threads nor on M.
"""

from __future__ import annotations

import functools

import numpy as np
from tvm import tirx
from tvm.script import tirx as T

from moec.targets.cpu.kernels.emit import vector_parts
from moec.targets.cpu.kernels.register_tile import Sums, accumulate, emit_row_tiles
from moec.targets.cpu.machine import Machine

ROW_TILES_PER_TASK = 16


def packed_shape(inner: int, columns: int, machine: Machine) -> tuple[int, int, int]:
    """Shape of the packed weight: column tiles, K, columns per tile (fewer than a whole tile if N is small)."""
    width = min(machine.column_tile, -(-columns // machine.lanes) * machine.lanes)
    return (-(-columns // width), inner, width)


def pack(weight: np.ndarray, machine: Machine) -> np.ndarray:
    """Bring a weight [K, N] into tile order [tiles, K, columns per tile]; missing columns are zero."""
    inner, columns = weight.shape
    tiles, _, width = packed_shape(inner, columns, machine)
    packed = np.zeros((tiles, inner, width), weight.dtype)
    for tile in range(tiles):
        part = weight[:, tile * width : (tile + 1) * width]
        packed[tile, :, : part.shape[1]] = part
    return packed


def _store_columns(sums: Sums, bias, y, row, first_column, start: int, count: int) -> None:
    for i, total in sums.rows():
        with T.vectorized(count) as j:
            column = first_column + start + j
            value = total[start + j] + T.cast(bias[column], "float32")
            T.buffer_store(y, T.cast(value, y.dtype), [row + i, column])


def _store(sums: Sums, width: int, bias, y, row, tile) -> None:
    """Emit ``y = sums + bias``, leaving out the columns that only pad the last tile."""
    columns = int(y.shape[1])
    full_tiles = columns // width
    if columns % width == 0:
        _store_columns(sums, bias, y, row, tile * width, 0, width)
        return
    with T.If(tile < full_tiles):
        with T.Then():
            _store_columns(sums, bias, y, row, tile * width, 0, width)
        with T.Else():
            for start, count in vector_parts(columns % width):
                _store_columns(sums, bias, y, row, full_tiles * width, start, count)


def _multiply(x, weight, bias, y, row, tile, height: int) -> None:
    inner, width = int(weight.shape[1]), int(weight.shape[2])
    sums = accumulate(height, width, inner, lambda i, k: x[row + i, k], lambda k, j: weight[tile, k, j], streamed=True)
    _store(sums, width, bias, y, row, tile)


def _multiply_rows(x, weight, bias, y, first, rows, tile, tile_rows: int) -> None:
    emit_row_tiles(rows, tile_rows, lambda row, height: _multiply(x, weight, bias, y, first + row, tile, height))


@functools.cache
def gemm(inner: int, columns: int, machine: Machine, dtype: str = "float32") -> tirx.PrimFunc:
    """The kernel ``(x[M, K], packed weight, bias[N], y[M, N])``; ``dtype`` is how all are stored, sums are float32."""
    tiles, _, width = packed_shape(inner, columns, machine)
    block = machine.row_tile * ROW_TILES_PER_TASK

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
            _multiply_rows(x, weight, bias, y, first, T.min(block, M - first), tile, machine.row_tile)

    return kernel
