"""Asynchronous copies of queries, keys and values to column tiles in shared memory, for tensor cores.

A column tile has rows of :data:`DEPTH` 16-bit numbers, swizzled as in :mod:`.grouped_gemm_mma`.
"""

from __future__ import annotations

from tvm.script import tirx as T

from moec.targets.cuda.kernels.mma_rows import COPY
from moec.targets.cuda.kernels.mma_tile import CHUNK, CHUNKS

DEPTH = 64
"""Numbers of a row of a column tile, which is 128 bytes."""
THREADS = 128
_ROWS_PER_COPY = THREADS // CHUNKS


def column_tiles(size: int) -> int:
    """The number of column tiles for rows of ``size`` numbers."""
    return -(-size // DEPTH)


@T.inline
def _copy(tile, target, size, address, is_there):
    """Start the copies of rows of ``size`` numbers. ``address(row, column)``: where they come from; ``is_there(row)``:
    whether the row exists. Missing rows and columns are filled with zeros."""
    chunk: T.let = tile.thread % CHUNKS
    for i in T.unroll(int(target.shape[1]) // _ROWS_PER_COPY):
        for column_tile in T.unroll(column_tiles(size)):
            row: T.let = i * _ROWS_PER_COPY + tile.thread // CHUNKS
            column: T.let = column_tile * DEPTH + chunk * CHUNK
            T.ptx[COPY](
                target.ptr_to([column_tile, row, (chunk ^ (row % 8)) * CHUNK]),
                address(row, T.min(column, size - CHUNK)),
                16,
                T.Select(T.And(is_there(row), column < size), T.uint32(16), T.uint32(0)),
            )


@T.inline
def copy_queries(tile):
    rows, operands = T.meta_var(tile.rows), T.meta_var(tile.operands)
    last: T.let = operands.queries_of(rows.batch) - 1
    _copy(
        tile,
        tile.queries,
        operands.problem.head_size,
        lambda row, column: operands.query.ptr_to(
            [*operands.query_place(rows.batch, rows.head(row), T.min(rows.query(row), last)), column]
        ),
        rows.has,
    )


@T.inline
def _copy_cached(tile, target, size, cache, first_key, column_of):
    """Start the copies of keys, or values, from ``first_key`` on. No byte is read of keys that are not in use."""
    rows, operands = T.meta_var(tile.rows), T.meta_var(tile.operands)
    page: T.let = operands.page_of(rows.batch, first_key)
    inside: T.let = operands.inside_page(first_key)
    last: T.let = operands.last_inside(rows.batch)
    _copy(
        tile,
        target,
        size,
        lambda row, column: cache.ptr_to(
            operands.place(rows.batch, rows.group, page, T.min(inside + row, last), column_of(column))
        ),
        lambda row: first_key + row < operands.used_keys(rows.batch),
    )


@T.inline
def copy_keys(tile, first_key):
    operands = T.meta_var(tile.operands)
    _copy_cached(tile, tile.keys, operands.problem.head_size, operands.key, first_key, lambda column: column)


@T.inline
def copy_values(tile, first_key):
    operands = T.meta_var(tile.operands)
    _copy_cached(tile, tile.values, operands.slice_columns, operands.value, first_key, tile.rows.column)
