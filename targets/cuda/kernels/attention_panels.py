"""Queries, keys and values on their way to tensor cores: panels in shared memory, by asynchronous copies.

A panel has lines of :data:`DEPTH` numbers of 16 bits, swizzled as in :mod:`.grouped_gemm_mma`.
"""

from __future__ import annotations

from tvm.script import tirx as T

from moec.targets.cuda.kernels.mma_rows import COPY
from moec.targets.cuda.kernels.mma_tile import PIECE, PIECES

LINES = 64
"""Queries, or keys, of a block of threads that multiplies with mma.sync at a time."""
DEPTH = 64
"""Numbers of a line, which is 128 bytes."""
THREADS = 128
_LINES_PER_COPY = THREADS // PIECES


def panels_of(size: int) -> int:
    """Panels that lines of so many numbers take."""
    return -(-size // DEPTH)


@T.inline
def _copy(tile, target, size, address, is_there):
    """Start to copy lines of ``size`` numbers; ``address(line, column)`` is where they come from. Zeros stand for lines
    and columns that there are not."""
    piece: T.let = tile.thread % PIECES
    for panel in T.unroll(panels_of(size)):
        for i in T.unroll(int(target.shape[1]) // _LINES_PER_COPY):
            line: T.let = i * _LINES_PER_COPY + tile.thread // PIECES
            column: T.let = panel * DEPTH + piece * PIECE
            T.ptx[COPY](
                target.ptr_to([panel, line, (piece ^ (line % 8)) * PIECE]),
                address(line, T.min(column, size - PIECE)),
                16,
                T.Select(T.And(is_there(line), column < size), T.uint32(16), T.uint32(0)),
            )


@T.inline
def copy_queries(tile):
    rows, operands = T.meta_var(tile.rows), T.meta_var(tile.operands)
    batch: T.let = T.cast(rows.batch, "int64")
    _copy(
        tile,
        tile.queries,
        operands.problem.head_size,
        lambda line, column: operands.query.ptr_to(
            [batch, rows.head(line), T.min(rows.query(line), operands.queries - 1), column]
        ),
        rows.has,
    )


@T.inline
def copy_keys(tile, first_key):
    """Copies keys; of keys that are not in use no byte is read."""
    rows, operands = T.meta_var(tile.rows), T.meta_var(tile.operands)
    page: T.let = operands.page_of(first_key)
    inside: T.let = operands.inside_page(first_key)
    last: T.let = operands.last_inside(rows.batch)
    _copy(
        tile,
        tile.keys,
        operands.problem.head_size,
        lambda line, column: operands.key.ptr_to(
            operands.place(rows.batch, rows.group, page, T.min(inside + line, last), column)
        ),
        lambda line: first_key + line < operands.used_keys(rows.batch),
    )


@T.inline
def copy_values(tile, first_key):
    rows, operands = T.meta_var(tile.rows), T.meta_var(tile.operands)
    page: T.let = operands.page_of(first_key)
    inside: T.let = operands.inside_page(first_key)
    last: T.let = operands.last_inside(rows.batch)
    _copy(
        tile,
        tile.values,
        operands.slice_columns,
        lambda line, column: operands.value.ptr_to(
            operands.place(rows.batch, rows.group, page, T.min(inside + line, last), rows.column(column))
        ),
        lambda line: first_key + line < operands.used_keys(rows.batch),
    )
