"""Attention of many queries without tensor cores: one pass over the keys, no scores in memory.

A block of threads computes :data:`ROWS` rows, see :mod:`.attention_rows`, and walks over tiles of :data:`KEYS` keys.
The scores of a tile are a matrix product through shared memory, as in :mod:`.grouped_gemm_simt`. Then each row's
largest score and sum of weights are updated, and the weights are stored in shared memory and multiplied with tiles of
values. Each of the 16 x 16 threads keeps the sums of every 16th row and every 16th column in registers.

After Dao and others, FlashAttention (2022), with the running maximum of Milakov and Gimelshein (2018).
"""

from __future__ import annotations

import dataclasses
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from moec.targets.gpu.kernels.attention_operands import (
    AttentionOperands,
    attention_kernel_of,
    quotient,
    start_row,
)
from moec.targets.gpu.kernels.attention_rows import RowTile, start_row_tiles
from moec.targets.gpu.kernels.attention_signatures import attention_kernel
from moec.targets.gpu.kernels.instructions import reduce_lanes, sync_block
from moec.targets.gpu.kernels.launch import one_block_is_enough
from moec.targets.tvm.heavy.attention import AttentionProblem

ROWS = 64
KEYS = 64
DEPTH = 16
"""Numbers of a key (for scores), and keys (for values), that are multiplied between two barriers."""
SIDE = 16
"""Threads along the rows and along the keys of a tile."""
THREADS = SIDE * SIDE
_PER_THREAD = ROWS // SIDE
"""Rows of a thread, and its keys of a tile."""
_PADDING = 1
"""Trailing numbers of each line of a tile, so that threads that store neighbouring numbers of a row use different
banks."""


@dataclasses.dataclass(frozen=True)
class _QueryTile:
    """The rows of a block of threads, and the place of this thread among its 16 x 16 threads."""

    rows: RowTile
    dtype: str
    thread: Any
    thread_row: Any
    thread_column: Any

    @property
    def operands(self) -> AttentionOperands:
        return self.rows.operands

    @property
    def columns_per_thread(self) -> int:
        """Columns of the values that a thread sums."""
        return -(-self.operands.slice_columns // SIDE)

    def row(self, i: Any) -> Any:
        """The ``i``-th row of this thread within the tile."""
        return self.thread_row + i * SIDE

    def column(self, j: Any) -> Any:
        """The ``j``-th key of this thread within a tile of keys, or column within the slice of the values."""
        return self.thread_column + j * SIDE


@dataclasses.dataclass(frozen=True)
class _SharedTiles:
    """Arrays in shared memory: tiles of rows and of keys [DEPTH, 64], weights [KEYS, ROWS], and a tile of values
    [DEPTH, columns], whose last columns may be padding."""

    rows: Any
    keys: Any
    weights: Any
    values: Any


@dataclasses.dataclass(frozen=True)
class _TiledState:
    """A thread's registers for its rows: the ``largest`` score, the sum of the weights (``totals``), and the ``sums``
    of weighted values so far."""

    largest: Any
    totals: Any
    sums: Any


@T.inline
def _load_tiles(tile, shared, first_key, first_input):
    """Load the next numbers of rows and keys into shared memory; missing rows, keys and numbers are zero."""
    operands, rows = T.meta_var(tile.operands), T.meta_var(tile.rows)
    depth: T.let = tile.thread % DEPTH
    k: T.let = first_input + depth
    page: T.let = operands.page_of(rows.batch, first_key)
    inside: T.let = operands.inside_page(first_key)
    for i in T.unroll(ROWS * DEPTH // THREADS):
        line: T.let = i * (THREADS // DEPTH) + tile.thread // DEPTH
        shared.rows[depth, line] = T.float32(0)
        shared.keys[depth, line] = T.float32(0)
        if k < operands.problem.head_size:
            if rows.has(line):
                shared.rows[depth, line] = T.cast(
                    operands.query[(*operands.query_place(rows.batch, rows.head(line), rows.query(line)), k)],
                    "float32",
                )
            if first_key + line < operands.used_keys(rows.batch):
                place = T.meta_var((rows.batch, rows.group, page, inside + line))
                size = T.meta_var(operands.problem.head_size)
                shared.keys[depth, line] = T.cast(
                    operands.key[operands.place(*place, k, size)], "float32"
                ) * operands.scale(operands.key, *place, size)


@T.inline
def _load_values(tile, shared, first_key):
    """Load a tile of values into shared memory; missing columns, and values of keys that are not in use, are zero."""
    operands, rows = T.meta_var(tile.operands), T.meta_var(tile.rows)
    columns = T.meta_var(operands.slice_columns)
    page: T.let = operands.page_of(rows.batch, first_key)
    inside: T.let = operands.inside_page(first_key)
    for step in T.serial(-(-columns * DEPTH // THREADS)):
        place: T.let = step * THREADS + tile.thread
        line: T.let = place // columns
        column: T.let = place % columns
        if place < columns * DEPTH:
            shared.values[line, column] = T.float32(0)
            if T.And(first_key + line < operands.used_keys(rows.batch), rows.has_column(column)):
                own = T.meta_var((rows.batch, rows.group, page, inside + line))
                size = T.meta_var(operands.problem.value_row)
                shared.values[line, column] = T.cast(
                    operands.value[operands.place(*own, rows.column(column), size)], "float32"
                ) * operands.scale(operands.value, *own, size)


@T.inline
def _add_products(tile, left_tile, first_line, right_tile, columns, sums):
    """Add the products of a thread's rows and columns to its ``sums`` [rows, columns], for DEPTH lines of both tiles;
    those of the left tile start at ``first_line``."""
    left = T.alloc_local((_PER_THREAD,), "float32")
    for k in T.serial(DEPTH):
        for i in T.unroll(_PER_THREAD):
            left[i] = left_tile[first_line + k, tile.row(i)]
        for j in T.unroll(columns):
            right: T.let = right_tile[k, tile.column(j)]
            for i in T.unroll(_PER_THREAD):
                sums[i, j] = sums[i, j] + left[i] * right


@T.inline
def _compute_scores(tile, shared, first_key, scores):
    """Compute the scores of this thread's rows and keys; those of keys that are not seen are minus infinity."""
    operands = T.meta_var(tile.operands)
    for i in T.unroll(_PER_THREAD):
        for j in T.unroll(_PER_THREAD):
            scores[i, j] = T.float32(0)
    for k_tile in T.serial(-(-operands.problem.head_size // DEPTH)):
        _load_tiles(tile, shared, first_key, k_tile * DEPTH)
        sync_block()
        _add_products(tile, shared.rows, 0, shared.keys, _PER_THREAD, scores)
        sync_block()
    for i in T.unroll(_PER_THREAD):
        row: T.let = tile.row(i)
        frontier: T.let = tile.rows.frontier(row)
        for j in T.unroll(_PER_THREAD):
            key: T.let = first_key + tile.column(j)
            if tile.rows.sees(row, key, frontier):
                scores[i, j] = operands.score(
                    scores[i, j], tile.rows.batch, tile.rows.head(row), tile.rows.query(row), key
                )
            else:
                scores[i, j] = T.float32(float("-inf"))


@T.inline
def _weigh(tile, shared, scores, state):
    """Turn scores into weights, stored in shared memory, and rescale the sums so far to the new largest score. The
    threads that share a row are half a warp."""
    largest = T.alloc_local((1,), "float32")
    total = T.alloc_local((1,), "float32")
    for i in T.unroll(_PER_THREAD):
        largest[0] = scores[i, 0]
        for j in T.unroll(1, _PER_THREAD):
            largest[0] = T.max(largest[0], scores[i, j])
        largest[0] = T.max(reduce_lanes(largest[0], "max", SIDE), state.largest[i])
        kept: T.let = T.exp(state.largest[i] - largest[0])
        state.largest[i] = largest[0]
        total[0] = T.float32(0)
        for j in T.unroll(_PER_THREAD):
            weight: T.let = T.exp(scores[i, j] - largest[0])
            total[0] = total[0] + weight
            shared.weights[tile.column(j), tile.row(i)] = weight
        state.totals[i] = state.totals[i] * kept + reduce_lanes(total[0], "sum", SIDE)
        for j in T.unroll(tile.columns_per_thread):
            state.sums[i, j] = state.sums[i, j] * kept


@T.inline
def _add_values(tile, shared, first_key, sums):
    for k_tile in T.serial(KEYS // DEPTH):
        _load_values(tile, shared, first_key + k_tile * DEPTH)
        sync_block()
        _add_products(tile, shared.weights, k_tile * DEPTH, shared.values, tile.columns_per_thread, sums)
        sync_block()


@T.inline
def _store(tile, state):
    operands, rows = T.meta_var(tile.operands), T.meta_var(tile.rows)
    batch: T.let = T.cast(rows.batch, "int64")
    for i in T.unroll(_PER_THREAD):
        row: T.let = tile.row(i)
        if rows.has(row):
            for j in T.unroll(tile.columns_per_thread):
                column: T.let = tile.column(j)
                if T.And(column < operands.slice_columns, rows.has_column(column)):
                    place = T.meta_var(
                        operands.result_place(batch, rows.head(row), rows.query(row), rows.column(column))
                    )
                    operands.result[place] = T.cast(quotient(state.sums[i, j], state.totals[i]), tile.dtype)


@T.inline
def _attend(tile, shared):
    scores = T.alloc_local((_PER_THREAD, _PER_THREAD), "float32")
    largest = T.alloc_local((_PER_THREAD,), "float32")
    totals = T.alloc_local((_PER_THREAD,), "float32")
    sums = T.alloc_local((_PER_THREAD, tile.columns_per_thread), "float32")
    state = T.meta_var(_TiledState(largest, totals, sums))
    rows = T.meta_var(tile.rows)
    for i in T.unroll(_PER_THREAD):
        row: T.let = tile.row(i)
        start_row(tile.operands, rows.head(row), rows.has(row), largest, totals, i)
        for j in T.unroll(tile.columns_per_thread):
            sums[i, j] = T.float32(0)
    for step in T.serial(tile.rows.begin // KEYS, T.ceildiv(tile.rows.end, KEYS)):
        _compute_scores(tile, shared, step * KEYS, scores)
        _weigh(tile, shared, scores, state)
        _add_values(tile, shared, step * KEYS, sums)
    _store(tile, state)


def attention_tiled(problem: AttentionProblem, dtype: str) -> tirx.PrimFunc:
    """The kernel with the parameters of :func:`~moec.targets.gpu.kernels.attention_signatures.attention_kernel`."""

    @T.inline
    def body(operands):
        T.device_entry()
        row_tile = T.alloc_shared((DEPTH, ROWS + _PADDING), "float32")
        key_tile = T.alloc_shared((DEPTH, KEYS + _PADDING), "float32")
        weights = T.alloc_shared((KEYS, ROWS + _PADDING), "float32")
        value_tile = T.alloc_shared((DEPTH, -(-operands.slice_columns // SIDE) * SIDE), "float32")
        shared = T.meta_var(_SharedTiles(row_tile, key_tile, weights, value_tile))

        @T.inline
        def attend(rows, thread):
            thread_row: T.let = thread // SIDE
            thread_column: T.let = thread % SIDE
            tile = T.meta_var(_QueryTile(rows, dtype, thread, thread_row, thread_column))
            with one_block_is_enough():
                _attend(tile, shared)

        start_row_tiles(operands, ROWS, THREADS, attend)

    return attention_kernel(problem, dtype, body)


ATTENTION_TILED = attention_kernel_of(
    "attention_tiled",
    attention_tiled,
    "tiles of 64 rows and 64 keys, float32 multiply-adds",
    tile=lambda _: f"{ROWS} rows x {KEYS} keys, {DEPTH} at a time",
)
