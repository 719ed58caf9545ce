"""Attention of many queries on the tensor cores of compute capability 9.0a: 16-bit floats, float32 scores and sums.

A block of threads computes :data:`ROWS` rows, see :mod:`.attention_rows`, and walks over tiles of :func:`tile_keys`
keys. One of its three warpgroups is the producer: it copies the queries, then keys and values alternately into a ring
of stages. The other two are consumers with 64 rows each. Scores are products of operands in shared memory. They become
weights in registers; rounded to 16 bits, their layout is that of the left operand of the product with the values. The
products of the next keys and of the last values run while weights are computed (Shah et al., FlashAttention-3, 2024,
algorithm 2).

Keys and values are copied asynchronously, 16 bytes at a time. So no byte is read of keys that are not in use, and pages
may be anywhere.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from tvm import tirx
from tvm.backend.cuda.lang import MBarrier
from tvm.script import tirx as T

from moec.targets.cuda.kernels.attention_copies import DEPTH, column_tiles, copy_keys, copy_queries, copy_values
from moec.targets.cuda.kernels.attention_mma import why_not
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
from moec.targets.cuda.kernels.mma_tile import MMA_COLUMNS, MMA_DEPTH, MMA_ROWS
from moec.targets.cuda.kernels.persistent_tiles import WARPGROUP
from moec.targets.cuda.kernels.shared_pool import SWIZZLE_ALIGNMENT, SharedPool
from moec.targets.cuda.kernels.tile_ring import (
    DEPTH_STEP,
    EIGHT_ROWS,
    ROW,
    SWIZZLE,
    RingPosition,
    arrive_written,
)
from moec.targets.cuda.kernels.wgmma_ring import await_products, multiply_instruction
from moec.targets.cuda.kernels.wgmma_tile import CONSUMERS, GROUP_ROWS
from moec.targets.gpu.kernels.attention_operands import (
    AttentionLaunch,
    AttentionOperands,
    attention_kernel_of,
)
from moec.targets.gpu.kernels.attention_rows import RowTile, start_row_tiles
from moec.targets.gpu.kernels.attention_signatures import attention_kernel
from moec.targets.gpu.kernels.launch import WARP
from moec.targets.tvm.heavy.attention import AttentionProblem

ROWS = CONSUMERS * GROUP_ROWS
_STAGES = 4
"""Stages of the ring: keys and values of two tiles."""
_REGISTERS = (72, 216)
"""Registers of a thread of the producer, and of a consumer."""


def tile_keys(problem: AttentionProblem) -> int:
    """Keys of a tile. With heads of 256, queries take 64 KiB of shared memory and a stage of 64 keys takes 32 KiB; sums
    take 128 registers of a thread, which leaves 32 for scores."""
    return 128 if max(problem.head_size, problem.value_size) <= 128 else 64


@dataclasses.dataclass(frozen=True)
class _KeyRing:
    """The ring in shared memory: ``stages`` [stages, column tiles, keys, DEPTH], alternately keys and values;
    ``queries`` [column tiles, ROWS, DEPTH]; and the barriers for both."""

    queries: Any
    stages: Any
    queries_full: MBarrier
    full: MBarrier
    empty: MBarrier

    @property
    def keys(self) -> int:
        return int(self.stages.shape[2])


@dataclasses.dataclass(frozen=True)
class _RingStage:
    """One stage as a target of :mod:`.attention_copies`: [column tiles, keys, DEPTH]."""

    stages: Any
    stage: Any

    @property
    def shape(self) -> Any:
        return self.stages.shape[1:]

    def ptr_to(self, at: list[Any]) -> Any:
        return self.stages.ptr_to([self.stage, *at])


@dataclasses.dataclass(frozen=True)
class _CopyTile:
    """The tile that :mod:`.attention_copies` works on: rows, the thread that copies, and the targets of the copies."""

    rows: RowTile
    thread: Any
    queries: Any
    keys: Any
    values: Any

    @property
    def operands(self) -> AttentionOperands:
        return self.rows.operands


@T.inline
def _produce(rows, ring, thread):
    begin: T.let = rows.begin // ring.keys
    steps = T.meta_var(T.ceildiv(rows.end, ring.keys) - begin)
    position = T.meta_var(RingPosition(_STAGES, 0))
    copy_queries(_CopyTile(rows, thread, ring.queries, None, None))
    T.ptx.cp.async_.commit_group()
    T.ptx.cp.async_.wait_group(0)
    arrive_written(ring.queries_full, 0)
    for item in T.serial(2 * steps):
        ring.empty.wait(position.stage, position.phase)
        stages = T.meta_var(ring.stages)
        first_key: T.let = (begin + item // 2) * ring.keys
        if item % 2 == 0:
            copy_keys(_CopyTile(rows, thread, None, _RingStage(stages, position.stage), None), first_key)
        else:
            copy_values(_CopyTile(rows, thread, None, None, _RingStage(stages, position.stage)), first_key)
        T.ptx.cp.async_.commit_group()
        # The newest copies stay in flight; wait for those before them.
        if item > 0:
            T.ptx.cp.async_.wait_group(1)
            arrive_written(ring.full, T.Select(position.stage == 0, _STAGES - 1, position.stage - 1))
        position.advance()
    if steps > 0:
        T.ptx.cp.async_.wait_group(0)
        arrive_written(ring.full, T.Select(position.stage == 0, _STAGES - 1, position.stage - 1))


def _all(registers: Any) -> list[Any]:
    """The registers [steps, 4] as a list, in the order of the instruction."""
    return [registers[i, v] for i in range(int(registers.shape[0])) for v in range(4)]


@T.inline
def _start_scores(own, ring, group, stage):
    """Start the products of a consumer's queries with the keys of a stage; results replace the scores."""
    left = T.local_scalar("uint64")
    right = T.local_scalar("uint64")
    tile_steps = T.meta_var(DEPTH // MMA_DEPTH)
    query_tile, key_tile = T.meta_var((ROWS * ROW, own.keys * ROW))
    T.cuda.wgmma.encode_matrix_descriptor(
        T.address_of(left), ring.queries.ptr_to([0, group * GROUP_ROWS, 0]), 1, EIGHT_ROWS, SWIZZLE
    )
    T.cuda.wgmma.encode_matrix_descriptor(
        T.address_of(right), ring.stages.ptr_to([stage, 0, 0, 0]), 1, EIGHT_ROWS, SWIZZLE
    )
    T.ptx.wgmma.fence.sync.aligned()
    for step in T.unroll(-(-own.operands.problem.head_size // MMA_DEPTH)):
        inside = T.meta_var(step % tile_steps * DEPTH_STEP)
        T.ptx[multiply_instruction(own.keys, own.dtype)](
            *_all(own.scores),
            left + T.cast(step // tile_steps * query_tile + inside, "uint64"),
            right + T.cast(step // tile_steps * key_tile + inside, "uint64"),
            step != 0,
            1,
            1,
            0,
            0,
        )
    T.ptx.wgmma.commit_group.sync.aligned()


@T.inline
def _start_sums(own, ring, stage):
    """Start the products of the weights with the values of a stage, which are added to the sums. Values are stored with
    one key per row, so the instruction transposes them."""
    right = T.local_scalar("uint64")
    column_tile, step_rows = T.meta_var((own.keys * ROW, MMA_DEPTH * ROW))
    T.cuda.wgmma.encode_matrix_descriptor(
        T.address_of(right), ring.stages.ptr_to([stage, 0, 0, 0]), column_tile, EIGHT_ROWS, SWIZZLE
    )
    T.ptx.wgmma.fence.sync.aligned()
    for step in T.unroll(own.keys // MMA_DEPTH):
        T.ptx[multiply_instruction(own.operands.slice_columns, own.dtype)](
            *_all(own.sums),
            own.weights[step, 0],
            own.weights[step, 1],
            own.weights[step, 2],
            own.weights[step, 3],
            right + T.cast(step * step_rows, "uint64"),
            True,
            1,
            1,
            1,
        )
    T.ptx.wgmma.commit_group.sync.aligned()


@T.inline
def _wait(ring, item):
    ring.full.wait(item % _STAGES, item // _STAGES % 2)


@T.inline
def _release(ring, thread, item):
    if thread % WARPGROUP == 0:
        MBarrier.arrive(ring.empty, item % _STAGES)


@T.inline
def _attend_tile(own, ring, group, thread, begin, step, seen):
    """Attend to the tile ``step`` tiles after the first, ``begin``.

    The wait for this tile's values, which are multiplied next, stands between the weights and the wait for the sums,
    because ptxas moves no instruction over its loop. Without it the wait for the sums would come first, and nothing
    would be computed meanwhile.
    """
    keys: T.let = 2 * step
    _wait(ring, keys)
    _start_scores(own, ring, group, keys % _STAGES)
    _start_sums(own, ring, (keys - 1) % _STAGES)
    await_products(own.scores, 1)
    _release(ring, thread, keys)
    find_scores(own, begin + step, seen)
    weigh(own)
    _wait(ring, keys + 1)
    await_products(own.sums, 0)
    _release(ring, thread, keys - 1)
    rescale(own)
    pack_weights(own)


@T.inline
def _consume(own, ring, group, thread):
    """Compute a consumer's rows."""
    begin: T.let = own.rows.begin // own.keys
    steps = T.meta_var(T.ceildiv(own.rows.end, own.keys) - begin)
    start_rows(own)
    ring.queries_full.wait(0, 0)
    if steps > 0:
        seen: T.let = tiles_seen(own, group * GROUP_ROWS)
        _wait(ring, 0)
        _start_scores(own, ring, group, 0)
        await_products(own.scores, 0)
        _release(ring, thread, 0)
        find_scores(own, begin, seen)
        weigh(own)
        rescale(own)
        pack_weights(own)
        _wait(ring, 1)
        for step in T.serial(1, steps):
            _attend_tile(own, ring, group, thread, begin, step, seen)
        _start_sums(own, ring, (2 * steps - 1) % _STAGES)
        await_products(own.sums, 0)
    store_rows(own)


def attention_wgmma(problem: AttentionProblem, dtype: str) -> tirx.PrimFunc:
    """The kernel with the parameters of :func:`~moec.targets.gpu.kernels.attention_signatures.attention_kernel`."""

    @T.inline
    def attend(rows, thread, ring):
        operands = T.meta_var(rows.operands)
        ring.queries_full.init(WARPGROUP)
        ring.full.init(WARPGROUP)
        ring.empty.init(CONSUMERS)
        T.cuda.cta_sync()
        if thread < WARPGROUP:
            T.ptx["setmaxnreg.dec.sync.aligned.u32"](_REGISTERS[0])
            _produce(rows, ring, thread)
        else:
            T.ptx["setmaxnreg.inc.sync.aligned.u32"](_REGISTERS[1])
            group: T.let = thread // WARPGROUP - 1
            first: T.let = group * GROUP_ROWS + thread % WARPGROUP // WARP * MMA_ROWS
            scores = T.alloc_local((ring.keys // MMA_COLUMNS, 4), "float32")
            weights = T.alloc_local((ring.keys // MMA_DEPTH, 4), "uint32")
            sums = T.alloc_local((operands.slice_columns // MMA_COLUMNS, 4), "float32")
            largest = T.alloc_local((2,), "float32")
            totals = T.alloc_local((2,), "float32")
            kept = T.alloc_local((2,), "float32")
            own = T.meta_var(LaneRows(rows, dtype, first, thread % WARP, scores, weights, sums, largest, totals, kept))
            _consume(own, ring, group, thread)

    @T.inline
    def body(operands):
        T.device_entry()
        pool = SharedPool()
        head_tiles = T.meta_var(column_tiles(problem.head_size))
        tiles = T.meta_var(max(head_tiles, column_tiles(operands.slice_columns)))
        queries = pool.alloc((head_tiles, ROWS, DEPTH), dtype, align=SWIZZLE_ALIGNMENT)
        stages = pool.alloc((_STAGES, tiles, tile_keys(problem), DEPTH), dtype, align=SWIZZLE_ALIGNMENT)
        queries_full = MBarrier(pool, 1)
        full = MBarrier(pool, _STAGES)
        empty = MBarrier(pool, _STAGES, phase_offset=1)
        pool.commit_named(queries=queries, stages=stages, queries_full=queries_full, full=full, empty=empty)
        ring = T.meta_var(_KeyRing(queries, stages, queries_full, full, empty))

        @T.inline
        def visit(rows, thread):
            attend(rows, thread, ring)

        start_row_tiles(operands, ROWS, (1 + CONSUMERS) * WARPGROUP, visit)

    return attention_kernel(problem, dtype, body)


def _why_not_launched(launch: AttentionLaunch, architecture: str) -> str | None:
    if architecture != "sm_90a":
        return f"the code is for {architecture}; wgmma needs sm_90a"
    return why_not(launch.problem, launch.dtype)


ATTENTION_WGMMA = attention_kernel_of(
    "attention_wgmma",
    attention_wgmma,
    f"tensor cores (wgmma), tiles of {ROWS} rows, keys and values by a warpgroup of their own",
    _why_not_launched,
    tile=lambda problem: f"{ROWS} rows x {tile_keys(problem)} keys",
)
