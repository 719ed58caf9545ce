"""Asynchronous copies, of 16 bytes each, from the input rows that dispatch selects to a k-tile in shared memory."""

from __future__ import annotations

from tvm.script import tirx as T

COPY = "cp.async.cg.shared.global.L2::128B"


@T.inline
def find_sources(tile, sources):
    """Look up the input rows that this thread copies from, into ``sources``; negative for padding."""
    for i in T.unroll(tile.shape.rows // tile.shape.rows_per_copy):
        pair: T.let = tile.operands.pair(tile.block, tile.copied_row(i))
        sources[i] = -1
        if pair >= 0:
            sources[i] = tile.operands.source(pair, tile.block, tile.copied_row(i))


@T.inline
def copy_rows(tile, stage, k_tile, sources):
    """Start the copies of this thread's chunks of a k-tile of rows. Padding is filled with zeros without reading
    memory."""
    k: T.let = tile.first_input(k_tile)
    for i in T.unroll(tile.shape.rows // tile.shape.rows_per_copy):
        row: T.let = T.cast(T.max(sources[i], 0), "int64")
        T.ptx[COPY](
            tile.row_tiles.ptr_to([stage, tile.copied_row(i), tile.place]),
            tile.operands.rows.ptr_to([row, tile.chunk_or_last(k)]),
            16,
            T.Select(T.And(sources[i] >= 0, tile.has_input(k)), T.uint32(16), T.uint32(0)),
        )
