"""Attention of many queries without tensor cores: one pass over the keys, no scores in memory.

A block of threads has :data:`ROWS` rows, which are queries of the heads that share keys: row r is query ``r // heads
per group``. It walks over tiles of :data:`KEYS` keys. The scores of a tile are a matrix product whose panels pass
through shared memory as in :mod:`.grouped_gemm_simt`; a row's largest score and sum of weights so far are corrected,
the weights go to shared memory, and panels of values are multiplied with them. The 16 x 16 threads keep the sums of the
result in registers: every 16th row and every 16th column.

After Dao and others, FlashAttention (2022), with the running maximum of Milakov and Gimelshein (2018).
"""

from __future__ import annotations

import dataclasses
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from moec.targets.cuda.kernels.attention_operands import LOWEST, AttentionOperands, attention_kernel
from moec.targets.cuda.kernels.launch import blocks_for
from moec.targets.tvm.attention import AttentionProblem

ROWS = 64
KEYS = 64
DEPTH = 16
"""Numbers of a key, and keys, that are multiplied between two barriers."""
SIDE = 16
"""Threads along the rows and along the keys of a tile."""
THREADS = SIDE * SIDE
_PER_THREAD = ROWS // SIDE
"""Rows of a thread, and keys of a tile."""
_PADDING = 1
"""Numbers behind each line of a panel: threads that store neighbouring numbers of a row then hit different banks."""


@dataclasses.dataclass(frozen=True)
class _Tile:
    """The rows of a block of threads from ``first_row`` on, in one group of a batch; where this thread stands.
    ``slice``: of the columns of the values."""

    operands: AttentionOperands
    dtype: str
    batch: Any
    group: Any
    first_row: Any
    slice: Any
    thread: Any
    thread_row: Any
    thread_column: Any

    @property
    def columns_per_thread(self) -> int:
        """Columns of the values."""
        return -(-self.operands.slice_columns // SIDE)

    @property
    def rows(self) -> Any:
        """Rows of the group."""
        return self.operands.queries * self.operands.problem.heads_per_group

    def row(self, i: Any) -> Any:
        """The ``i``-th row of this thread within the tile."""
        return self.thread_row + i * SIDE

    def column(self, j: Any) -> Any:
        """The ``j``-th key of this thread within a tile of keys, or column within the slice of the values."""
        return self.thread_column + j * SIDE

    def query(self, row: Any) -> Any:
        """The query of a row of the tile."""
        return (self.first_row + row) // self.operands.problem.heads_per_group

    def head(self, row: Any) -> Any:
        """The head of a row of the tile."""
        ratio = self.operands.problem.heads_per_group
        return self.group * ratio + (self.first_row + row) % ratio


@dataclasses.dataclass(frozen=True)
class _Shared:
    """Panels of rows and of keys [DEPTH, 64], weights [KEYS, ROWS], and a panel of values [DEPTH, columns], whose last
    columns may stand for none."""

    rows: Any
    keys: Any
    weights: Any
    values: Any


@dataclasses.dataclass(frozen=True)
class _State:
    """What a thread knows of its rows: the largest score and the sum of the weights so far, and sums of the result."""

    largest: Any
    totals: Any
    sums: Any


@T.inline
def _load_panels(tile, shared, first_key, first_input):
    """Zeros stand for rows, keys and numbers that there are not."""
    operands = T.meta_var(tile.operands)
    batch: T.let = T.cast(tile.batch, "int64")
    depth: T.let = tile.thread % DEPTH
    k: T.let = first_input + depth
    for i in T.unroll(ROWS * DEPTH // THREADS):
        line: T.let = i * (THREADS // DEPTH) + tile.thread // DEPTH
        shared.rows[depth, line] = T.float32(0)
        shared.keys[depth, line] = T.float32(0)
        if k < operands.problem.head_size:
            if tile.first_row + line < tile.rows:
                shared.rows[depth, line] = T.cast(
                    operands.query[batch, tile.head(line), tile.query(line), k], "float32"
                )
            if first_key + line < operands.used_keys(tile.batch):
                shared.keys[depth, line] = T.cast(operands.key[batch, tile.group, first_key + line, k], "float32")


@T.inline
def _load_values(tile, shared, first_key):
    """Zeros stand for keys and columns that there are not, and for keys that are not in use."""
    operands = T.meta_var(tile.operands)
    columns = T.meta_var(operands.slice_columns)
    for step in T.serial(-(-columns * DEPTH // THREADS)):
        place: T.let = step * THREADS + tile.thread
        key: T.let = first_key + place // columns
        column: T.let = tile.slice * columns + place % columns
        if place < columns * DEPTH:
            shared.values[place // columns, place % columns] = T.float32(0)
            if T.And(key < operands.used_keys(tile.batch), column < operands.problem.value_size):
                shared.values[place // columns, place % columns] = T.cast(
                    operands.value[T.cast(tile.batch, "int64"), tile.group, key, column], "float32"
                )


@T.inline
def _add_products(tile, left_panel, first_line, right_panel, columns, sums):
    """``sums`` [rows, columns] of a thread become larger by the products of its rows and columns: the rows lie in lines
    of the left panel from ``first_line`` on, the columns in those of the right one."""
    left = T.alloc_local((_PER_THREAD,), "float32")
    for k in T.serial(DEPTH):
        for i in T.unroll(_PER_THREAD):
            left[i] = left_panel[first_line + k, tile.row(i)]
        for j in T.unroll(columns):
            right: T.let = right_panel[k, tile.column(j)]
            for i in T.unroll(_PER_THREAD):
                sums[i, j] = sums[i, j] + left[i] * right


@T.inline
def _compute_scores(tile, shared, first_key, scores):
    """Scores of this thread's rows and keys; those of keys that are not seen are minus infinity."""
    operands = T.meta_var(tile.operands)
    for i in T.unroll(_PER_THREAD):
        for j in T.unroll(_PER_THREAD):
            scores[i, j] = T.float32(0)
    for panel in T.serial(-(-operands.problem.head_size // DEPTH)):
        _load_panels(tile, shared, first_key, panel * DEPTH)
        T.cuda.cta_sync()
        _add_products(tile, shared.rows, 0, shared.keys, _PER_THREAD, scores)
        T.cuda.cta_sync()
    for i in T.unroll(_PER_THREAD):
        query: T.let = tile.query(tile.row(i))
        frontier: T.let = operands.frontier(tile.batch, query)
        for j in T.unroll(_PER_THREAD):
            key: T.let = first_key + tile.column(j)
            if T.And(tile.first_row + tile.row(i) < tile.rows, key < frontier):
                scores[i, j] = operands.score(scores[i, j], tile.batch, tile.head(tile.row(i)), query, key)
            else:
                scores[i, j] = T.float32(float("-inf"))


@T.inline
def _weigh(tile, shared, scores, state):
    """Scores become weights, in shared memory; what was summed before is made to fit a new largest score. The threads
    of a row are half a warp."""
    largest = T.alloc_local((1,), "float32")
    total = T.alloc_local((1,), "float32")
    for i in T.unroll(_PER_THREAD):
        largest[0] = scores[i, 0]
        for j in T.unroll(1, _PER_THREAD):
            largest[0] = T.max(largest[0], scores[i, j])
        largest[0] = T.max(T.cuda.warp_reduce(largest[0], "max", SIDE), state.largest[i])
        kept: T.let = T.exp(state.largest[i] - largest[0])
        state.largest[i] = largest[0]
        total[0] = T.float32(0)
        for j in T.unroll(_PER_THREAD):
            weight: T.let = T.exp(scores[i, j] - largest[0])
            total[0] = total[0] + weight
            shared.weights[tile.column(j), tile.row(i)] = weight
        state.totals[i] = state.totals[i] * kept + T.cuda.warp_reduce(total[0], "sum", SIDE)
        for j in T.unroll(tile.columns_per_thread):
            state.sums[i, j] = state.sums[i, j] * kept


@T.inline
def _add_values(tile, shared, first_key, sums):
    for panel in T.serial(KEYS // DEPTH):
        _load_values(tile, shared, first_key + panel * DEPTH)
        T.cuda.cta_sync()
        _add_products(tile, shared.weights, panel * DEPTH, shared.values, tile.columns_per_thread, sums)
        T.cuda.cta_sync()


@T.inline
def _store(tile, state):
    operands = T.meta_var(tile.operands)
    for i in T.unroll(_PER_THREAD):
        if tile.first_row + tile.row(i) < tile.rows:
            query: T.let = tile.query(tile.row(i))
            head: T.let = tile.head(tile.row(i))
            for j in T.unroll(tile.columns_per_thread):
                column: T.let = tile.slice * operands.slice_columns + tile.column(j)
                if T.And(tile.column(j) < operands.slice_columns, column < operands.problem.value_size):
                    operands.result[T.cast(tile.batch, "int64"), head, query, column] = T.cast(
                        T.Select(state.totals[i] == T.float32(0), T.float32(0), state.sums[i, j] / state.totals[i]),
                        tile.dtype,
                    )


@T.inline
def _attend(tile, shared):
    operands = T.meta_var(tile.operands)
    scores = T.alloc_local((_PER_THREAD, _PER_THREAD), "float32")
    largest = T.alloc_local((_PER_THREAD,), "float32")
    totals = T.alloc_local((_PER_THREAD,), "float32")
    sums = T.alloc_local((_PER_THREAD, tile.columns_per_thread), "float32")
    state = T.meta_var(_State(largest, totals, sums))
    for i in T.unroll(_PER_THREAD):
        largest[i] = T.float32(LOWEST)
        totals[i] = T.float32(0)
        for j in T.unroll(tile.columns_per_thread):
            sums[i, j] = T.float32(0)
    # The last query sees the most keys.
    last: T.let = T.min(tile.query(ROWS - 1), operands.queries - 1)
    frontier: T.let = T.max(operands.frontier(tile.batch, last), 0)
    for step in T.serial(T.ceildiv(frontier, KEYS)):
        _compute_scores(tile, shared, step * KEYS, scores)
        _weigh(tile, shared, scores, state)
        _add_values(tile, shared, step * KEYS, sums)
    _store(tile, state)


def attention_tiled(problem: AttentionProblem, dtype: str) -> tirx.PrimFunc:
    """The kernel of :func:`~moec.targets.cuda.kernels.attention_operands.attention_kernel`."""

    @T.inline
    def body(operands):
        T.device_entry()
        row_tiles = T.meta_var(blocks_for(operands.queries * problem.heads_per_group, ROWS))
        pairs = T.meta_var(operands.batches * operands.groups)
        index = T.cta_id([T.max(pairs, 1) * row_tiles * operands.slices])
        thread = T.thread_id([THREADS])
        row_panel = T.alloc_shared((DEPTH, ROWS + _PADDING), "float32")
        key_panel = T.alloc_shared((DEPTH, KEYS + _PADDING), "float32")
        weights = T.alloc_shared((KEYS, ROWS + _PADDING), "float32")
        value_panel = T.alloc_shared((DEPTH, -(-operands.slice_columns // SIDE) * SIDE), "float32")
        shared = T.meta_var(_Shared(row_panel, key_panel, weights, value_panel))
        first: T.let = index % operands.slices
        place: T.let = index // operands.slices
        pair: T.let = T.truncdiv(place, row_tiles)
        batch: T.let = T.truncdiv(pair, operands.groups)
        group: T.let = T.truncmod(pair, operands.groups)
        first_row: T.let = T.truncmod(place, row_tiles) * ROWS
        thread_row: T.let = thread // SIDE
        thread_column: T.let = thread % SIDE
        if T.And(pair < pairs, first_row < operands.queries * problem.heads_per_group):
            tile = T.meta_var(_Tile(operands, dtype, batch, group, first_row, first, thread, thread_row, thread_column))
            _attend(tile, shared)

    return attention_kernel(problem, dtype, body)
