"""Attention of many queries on tensor cores (compute capability 8.0 and up): 16-bit floats, float32 scores and sums.

A block of four warps computes :data:`ROWS` rows, see :mod:`.attention_rows`, 16 rows per warp, and walks over tiles of
:data:`KEYS` keys. Asynchronous copies bring keys and values into shared memory, see :mod:`.attention_copies`: the next
keys while weights and values are multiplied, the next values while the next scores are computed. A warp keeps scores,
weights and sums of its rows in registers. The layout of the accumulators of one product, rounded to 16 bits, is that of
the left operand of the next product (Dao, FlashAttention-2, 2023).
"""

from __future__ import annotations

import dataclasses
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from moec.targets.cuda.kernels.attention_copies import (
    DEPTH,
    THREADS,
    column_tiles,
    copy_keys,
    copy_queries,
    copy_values,
)
from moec.targets.cuda.kernels.attention_softmax import (
    LaneRows,
    find_scores,
    pack_weights,
    rescale,
    start_rows,
    store_rows,
    tiles_seen,
    weigh,
)
from moec.targets.cuda.kernels.mma_tile import CHUNK, MMA_COLUMNS, MMA_DEPTH, MMA_ROWS
from moec.targets.cuda.kernels.shared_pool import SharedPool
from moec.targets.gpu.kernels.attention_operands import (
    VALUE_COLUMNS,
    AttentionOperands,
    attention_kernel_of,
)
from moec.targets.gpu.kernels.attention_rows import RowTile, start_row_tiles
from moec.targets.gpu.kernels.attention_signatures import attention_kernel
from moec.targets.gpu.kernels.launch import WARP, one_block_is_enough
from moec.targets.tvm.heavy.attention import AttentionProblem

ROWS = KEYS = 64
"""Rows of a block of threads, and keys of a tile."""
LARGEST_HEAD = 256
"""The most numbers of a query that fit into shared memory together with keys and values."""
_KEY_STEPS = KEYS // MMA_COLUMNS
"""Instructions of a warp along the keys of a tile, for scores."""
_LOAD = "ldmatrix.sync.aligned.m8n8.x4.shared.b16"
_LOAD_TRANSPOSED = "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16"
_MULTIPLY = {
    "float16": "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32",
    "bfloat16": "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
}


def why_not(problem: AttentionProblem, dtype: str) -> str | None:
    """The reason why :func:`attention_mma` cannot compute an attention of tensors of ``dtype``, or None."""
    if dtype not in _MULTIPLY:
        return f"{dtype} tensors; the instruction takes float16 or bfloat16"
    if problem.paged not in ("", dtype):
        return f"keys in {problem.paged} and queries in {dtype}; the instruction takes one type"
    if problem.head_size % CHUNK or problem.value_size % CHUNK:
        return f"heads of {problem.head_size} and {problem.value_size}; expected multiples of {CHUNK}"
    if problem.head_size > LARGEST_HEAD:
        return f"heads of {problem.head_size}; there is shared memory for {LARGEST_HEAD}"
    if problem.value_size > VALUE_COLUMNS and problem.value_size % VALUE_COLUMNS:
        return f"values of {problem.value_size}; expected at most, or a multiple of, {VALUE_COLUMNS}"
    return None


@dataclasses.dataclass(frozen=True)
class _QueryRows:
    """The rows of a block of threads, and the place of this thread in the block. ``queries``, ``keys`` and ``values``
    [column tiles, 64, DEPTH] are in shared memory."""

    rows: RowTile
    dtype: str
    thread: Any
    warp: Any
    lane: Any
    queries: Any
    keys: Any
    values: Any

    @property
    def operands(self) -> AttentionOperands:
        return self.rows.operands

    @property
    def head_steps(self) -> int:
        """Instructions along the numbers of a query and a key."""
        return -(-self.operands.problem.head_size // MMA_DEPTH)

    @property
    def value_steps(self) -> int:
        """Instructions along the columns of the values, an even number."""
        return -(-self.operands.slice_columns // (2 * MMA_COLUMNS)) * 2


@T.inline
def _multiply(tile, sums, step, left, at, right, side):
    """Add the product of 16 x 16 and 16 x 8 numbers to ``sums[step]``. ``at``: of the left operand; ``side``: 0 or 1,
    the half of ``right`` to use."""
    T.ptx[_MULTIPLY[tile.dtype]](
        sums[step, 0],
        sums[step, 1],
        sums[step, 2],
        sums[step, 3],
        left[at, 0],
        left[at, 1],
        left[at, 2],
        left[at, 3],
        right[side * 2],
        right[side * 2 + 1],
        sums[step, 0],
        sums[step, 1],
        sums[step, 2],
        sums[step, 3],
    )


@T.inline
def _multiply_keys(tile, scores):
    left = T.alloc_local((1, 4), "uint32")
    right = T.alloc_local((4,), "uint32")
    for j in T.unroll(_KEY_STEPS):
        for v in T.unroll(4):
            scores[j, v] = T.float32(0)
    for step in T.unroll(tile.head_steps):
        chunk: T.let = step % 4 * 2
        T.ptx[_LOAD](
            left[0, 0],
            left[0, 1],
            left[0, 2],
            left[0, 3],
            tile.queries.ptr_to(
                [
                    step // 4,
                    tile.warp * MMA_ROWS + tile.lane % 16,
                    ((chunk + tile.lane // 16) ^ (tile.lane % 8)) * CHUNK,
                ]
            ),
        )
        for j in T.unroll(_KEY_STEPS // 2):
            T.ptx[_LOAD](
                right[0],
                right[1],
                right[2],
                right[3],
                tile.keys.ptr_to(
                    [
                        step // 4,
                        j * 2 * MMA_COLUMNS + tile.lane // 16 * 8 + tile.lane % 8,
                        ((chunk + tile.lane // 8 % 2) ^ (tile.lane % 8)) * CHUNK,
                    ]
                ),
            )
            for side in T.unroll(2):
                _multiply(tile, scores, 2 * j + side, left, 0, right, side)


@T.inline
def _multiply_values(tile, own):
    right = T.alloc_local((4,), "uint32")
    for step in T.unroll(KEYS // MMA_DEPTH):
        for j in T.unroll(tile.value_steps // 2):
            # Values are stored with one key per row; the instruction takes one key per column.
            T.ptx[_LOAD_TRANSPOSED](
                right[0],
                right[1],
                right[2],
                right[3],
                tile.values.ptr_to(
                    [
                        j // 4,
                        step * MMA_DEPTH + tile.lane % 16,
                        ((j % 4 * 2 + tile.lane // 16) ^ (tile.lane % 8)) * CHUNK,
                    ]
                ),
            )
            for side in T.unroll(2):
                _multiply(tile, own.sums, 2 * j + side, own.weights, step, right, side)


@T.inline
def _attend(tile):
    scores = T.alloc_local((_KEY_STEPS, 4), "float32")
    weights = T.alloc_local((KEYS // MMA_DEPTH, 4), "uint32")
    sums = T.alloc_local((tile.value_steps, 4), "float32")
    largest = T.alloc_local((2,), "float32")
    totals = T.alloc_local((2,), "float32")
    kept = T.alloc_local((2,), "float32")
    own = T.meta_var(
        LaneRows(tile.rows, tile.dtype, tile.warp * MMA_ROWS, tile.lane, scores, weights, sums, largest, totals, kept)
    )
    start_rows(own)
    steps: T.let = T.ceildiv(tile.rows.end, KEYS)
    begin: T.let = tile.rows.begin // KEYS
    copy_queries(tile)
    copy_keys(tile, begin * KEYS)
    T.ptx.cp.async_.commit_group()
    copy_values(tile, begin * KEYS)
    T.ptx.cp.async_.commit_group()
    for step in T.serial(begin, steps):
        # All copies of this thread except the newest group have arrived; after the barrier, those of all threads have.
        T.ptx.cp.async_.wait_group(1)
        T.cuda.cta_sync()
        _multiply_keys(tile, scores)
        T.cuda.cta_sync()
        if step + 1 < steps:
            copy_keys(tile, (step + 1) * KEYS)
        # Commit a group even if it is empty, so that the number of groups in flight stays the same.
        T.ptx.cp.async_.commit_group()
        find_scores(own, step, tiles_seen(own, own.first))
        weigh(own)
        rescale(own)
        pack_weights(own)
        T.ptx.cp.async_.wait_group(1)
        T.cuda.cta_sync()
        _multiply_values(tile, own)
        T.cuda.cta_sync()
        if step + 1 < steps:
            copy_values(tile, (step + 1) * KEYS)
        T.ptx.cp.async_.commit_group()
    T.ptx.cp.async_.wait_group(0)
    store_rows(own)


def attention_mma(problem: AttentionProblem, dtype: str) -> tirx.PrimFunc:
    """The kernel with the parameters of :func:`~moec.targets.gpu.kernels.attention_signatures.attention_kernel`."""
    head_tiles = column_tiles(problem.head_size)

    @T.inline
    def body(operands):
        T.device_entry()
        pool = SharedPool()
        queries = pool.alloc((head_tiles, ROWS, DEPTH), dtype, align=128)
        keys = pool.alloc((head_tiles, KEYS, DEPTH), dtype, align=128)
        values = pool.alloc((column_tiles(operands.slice_columns), KEYS, DEPTH), dtype, align=128)
        pool.commit_named(queries=queries, keys=keys, values=values)

        @T.inline
        def attend(rows, thread):
            warp: T.let = thread // WARP
            lane: T.let = thread % WARP
            tile = T.meta_var(_QueryRows(rows, dtype, thread, warp, lane, queries, keys, values))
            with one_block_is_enough():
                _attend(tile)

        start_row_tiles(operands, ROWS, THREADS, attend)

    return attention_kernel(problem, dtype, body)


ATTENTION_MMA = attention_kernel_of(
    "attention_mma",
    attention_mma,
    "tensor cores (mma.sync), tiles of 64 rows and 64 keys by cp.async",
    lambda launch, _: why_not(launch.problem, launch.dtype),
    tile=lambda _: f"{ROWS} rows x {KEYS} keys",
)
