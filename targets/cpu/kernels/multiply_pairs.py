"""Products of bfloat16 rows with bfloat16 weights, summed in float32."""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from moec.targets.cpu.kernels import matrix_tile
from moec.targets.cpu.kernels.dot import pair_dot, pair_words
from moec.targets.cpu.kernels.emit import loop, named
from moec.targets.cpu.kernels.multiplication import Multiplication, Rows, Weights, WeightTile
from moec.targets.cpu.kernels.register_tile import Sums, emit_row_tiles, prefetch

_AHEAD = 16
"""Pairs of inputs that weights are prefetched ahead of their use."""


def emit(
    product: Multiplication, rows: Rows, weights: Weights, tile: WeightTile, sums: Any, first: Any, count: Any
) -> None:
    def by_dot(row: Any, height: int) -> None:
        _emit_dots(product, rows, weights, tile, sums, first, row, height)

    if not product.tiles_used:
        emit_row_tiles(count, product.row_tile, by_dot)
        return
    with T.If(count < weights.crossover):
        with T.Then():
            emit_row_tiles(count, product.row_tile, by_dot)
        with T.Else():
            _emit_blocks(rows, weights, tile, sums, first, count)


def _emit_dots(product, rows, weights, tile, sums, first, row, height: int) -> None:
    lanes, columns = product.machine.lanes, product.columns
    dot = pair_dot(product.machine)
    totals = Sums(height, columns)
    totals.fill(lambda i, j: T.float32(0))
    with loop("pair", T.serial(tile.inner // 2)) as pair:
        start = named("start", T.bind(tile.data + pair * (2 * columns)))
        for line in range(0, 2 * columns, 32):
            prefetch(weights.data[start + _AHEAD * 2 * columns + line])
        vectors = [T.bind(pair_words(weights.data, [start + 2 * lanes * v], lanes)) for v in range(product.vectors)]
        for i, total in totals.rows():
            left = named("left", T.bind(T.broadcast(pair_words(rows.values, [first + row + i, 2 * pair], 1), lanes)))
            for v, vector in enumerate(vectors):
                total.set_vector(dot(total.vector(v, lanes), vector, left), v, lanes)
    for i, total in totals.rows():
        with loop("j", T.vectorized(columns)) as j:
            T.buffer_store(sums, total[j], [row + i, j])


def _emit_blocks(rows, weights, tile, sums, first, count) -> None:
    """The sums buffer has room for whole blocks, so that tiles are stored where they belong."""
    block = matrix_tile.BlockProduct("bfloat16", rows.values, 2 * int(rows.values.shape[1]), weights.data)
    matrix_tile.configure()
    steps = block.steps(tile.inner)
    with loop("index", T.serial(T.ceildiv(count, matrix_tile.ROWS))) as index:
        row = named("row", T.bind(index * matrix_tile.ROWS))
        with T.If(count - row > matrix_tile.ROWS // 2):
            with T.Then():
                block.emit(first + row, 0, tile.data, steps, sums, row, halves=2)
            with T.Else():
                block.emit(first + row, 0, tile.data, steps, sums, row, halves=1)
    matrix_tile.release()
