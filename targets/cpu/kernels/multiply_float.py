"""Products in float32: the meaning of the graph, whatever the weights are stored in.

Weights that are floating point are widened as they are loaded. Quantised weights are decoded, :data:`CHUNK` inputs at a
time, into a panel in the first-level cache that all rows of the block then use; the sums wait in memory between chunks.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from moec.targets.cpu.kernels import decode
from moec.targets.cpu.kernels.emit import loop, named
from moec.targets.cpu.kernels.multiplication import Multiplication, Rows, Weights, WeightTile
from moec.targets.cpu.kernels.register_tile import Sums, accumulate, clear_rows, emit_row_tiles, prefetch

CHUNK = 64
"""Inputs decoded at a time: a panel of 64 x 32 float32 is 8 KB."""


def emit(
    product: Multiplication, rows: Rows, weights: Weights, tile: WeightTile, sums: Any, first: Any, count: Any
) -> None:
    if not product.stored.is_float:
        _emit_decoded(product, rows, weights, tile, sums, first, count)
    elif product.stored.step == 2:
        _emit_pairs(product, rows, weights, tile, sums, first, count)
    else:
        _emit_plain(product, rows, weights, tile, sums, first, count)


def _store(product: Multiplication, totals: Sums, sums: Any, row: Any) -> None:
    for i, total in totals.rows():
        with loop("j", T.vectorized(product.columns)) as j:
            T.buffer_store(sums, total[j], [row + i, j])


def _emit_plain(product, rows, weights, tile, sums, first, count) -> None:
    def emit_tile(row: Any, height: int) -> None:
        totals = accumulate(
            height,
            product.columns,
            tile.inner,
            lambda i, k: rows.values[first + row + i, k],
            lambda k, j: weights.data[tile.data + k * product.columns + j],
            streamed=True,
        )
        _store(product, totals, sums, row)

    emit_row_tiles(count, product.row_tile, emit_tile)


def _emit_pairs(product, rows, weights, tile, sums, first, count) -> None:
    """bfloat16 weights, two inputs side by side: both are widened from one load."""
    lanes, columns = product.machine.lanes, product.columns

    def emit_tile(row: Any, height: int) -> None:
        totals = Sums(height, columns)
        totals.fill(lambda i, j: T.float32(0))
        with loop("pair", T.serial(tile.inner // 2)) as pair:
            start = tile.data + pair * (2 * columns)
            for line in range(columns * 4 // 64):
                prefetch(weights.data[start + 16 * 2 * columns + line * 32])
            vectors = [decode.pair(weights.data, start + 2 * lanes * v, lanes) for v in range(product.vectors)]
            for i, total in totals.rows():
                for position in range(2):
                    left = T.broadcast(T.cast(rows.values[first + row + i, 2 * pair + position], "float32"), lanes)
                    for v, vector in enumerate(vectors):
                        total.set_vector(total.vector(v, lanes) + left * vector[position], v, lanes)
        _store(product, totals, sums, row)

    emit_row_tiles(count, product.row_tile, emit_tile)


def _emit_decoded(product, rows, weights, tile, sums, first, count) -> None:
    columns = product.columns
    panel = named("panel", T.alloc_buffer((CHUNK, columns), "float32"))
    clear_rows(sums, count)
    with loop("chunk", T.serial(T.ceildiv(tile.inner, CHUNK))) as chunk:
        start = named("start", T.bind(chunk * CHUNK))
        inner = named("inner", T.bind(T.min(CHUNK, tile.inner - start)))
        together = 4 * product.stored.quads
        with loop("index", T.serial(T.ceildiv(inner, together))) as index:
            decode.store_quads(product, weights, tile, start // together + index, panel, together * index)

        def emit_tile(row: Any, height: int) -> None:
            totals = accumulate(
                height,
                columns,
                inner,
                lambda i, k: rows.values[first + row + i, start + k],
                lambda k, j: panel[k, j],
                initial=lambda i, j: sums[row + i, j],
            )
            _store(product, totals, sums, row)

        emit_row_tiles(count, product.row_tile, emit_tile)
