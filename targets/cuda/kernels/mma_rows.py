"""Rows of the input into a panel, by asynchronous copies of 16 bytes; wherever dispatch says that they come from."""

from __future__ import annotations

from tvm.script import tirx as T

COPY = "cp.async.cg.shared.global.L2::128B"


@T.inline
def find_sources(tile, sources):
    """Rows of the input that this thread copies from; negative for padding."""
    for i in T.unroll(tile.shape.rows // tile.shape.lines_per_copy):
        pair: T.let = tile.operands.pair(tile.block, tile.line(i))
        sources[i] = -1
        if pair >= 0:
            sources[i] = tile.operands.source(pair, tile.block, tile.line(i))


@T.inline
def copy_rows(tile, stage, panel, sources):
    """Start to copy this thread's pieces of a panel. Of padding no byte is read, and zeros are written."""
    k: T.let = tile.first_input(panel)
    for i in T.unroll(tile.shape.rows // tile.shape.lines_per_copy):
        row: T.let = T.cast(T.max(sources[i], 0), "int64")
        T.ptx[COPY](
            tile.row_panels.ptr_to([stage, tile.line(i), tile.place]),
            tile.operands.rows.ptr_to([row, tile.piece_or_last(k)]),
            16,
            T.Select(T.And(sources[i] >= 0, tile.has_input(k)), T.uint32(16), T.uint32(0)),
        )
