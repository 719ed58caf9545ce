"""The ring of stages in shared memory that brings k-tiles to wgmma: the producer fills it, consumers empty it.

One warpgroup, the producer, fills the stages one after another, also beyond the end of a tile. A k-tile that is a box
in memory is one copy by the tensor memory accelerator (TMA). Gathered rows are scattered in memory, so they are copied
asynchronously, 16 bytes at a time. A quantised matrix is decoded by the producer's threads. Each stage has two
barriers. It is full when all copies have arrived, and empty when its consumer has multiplied it.

Consumers take turns. A barrier distinguishes only a phase from the next one. A consumer that waited for its first
k-tile while the other is still far from its last one could therefore mistake an older phase for its own. So each waits
for its turn, which the other passes on once all k-tiles of its own tile have arrived. Each warp passes it on
separately, because warps may run apart: a warp that still waits for its turn, while another has already started the
only k-tile of its tile, must not miss it.

Two blocks of threads in a cluster may need the same k-tiles of the matrix. Then each copies half of them to both
blocks. A stage is free only when consumers of both blocks have multiplied it, so they arrive at the barriers of both.

K-tiles are stored in the 128-byte swizzle of :mod:`.grouped_gemm_mma`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from tvm.backend.cuda.lang import MBarrier, PipelineState, TMABar
from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder

from moec.targets.cuda.kernels.grid import unknown_one
from moec.targets.cuda.kernels.mma_quantized import Fetched, chunk_bytes, columns_of_thread, decode, fetch
from moec.targets.cuda.kernels.mma_rows import copy_rows, find_sources
from moec.targets.cuda.kernels.mma_tile import DEPTH, MMA_DEPTH, SWIZZLE_BYTES, k_tile_depth
from moec.targets.cuda.kernels.shared_pool import SWIZZLE_ALIGNMENT, SharedPool
from moec.targets.cuda.kernels.wgmma_tile import CONSUMERS, GROUP_ROWS, WARPGROUP, WgmmaTile
from moec.targets.gpu.kernels.fp8_rows import FP8
from moec.targets.gpu.kernels.grouped_problem import GroupedProblem
from moec.targets.gpu.kernels.launch import WARP

SWIZZLE = 3
"""The number of the 128-byte swizzle, for TMA and for wgmma."""
ELEMENTS = {"float16": "f16", "bfloat16": "bf16", FP8: "e4m3"}
_COPY_MATRIX, _COPY_ROWS = (
    f"cp.async.bulk.tensor.{rank}d.shared::cluster.global.mbarrier::complete_tx::bytes" for rank in (3, 2)
)
_COPY_MATRIX_TO_CLUSTER = f"{_COPY_MATRIX}.multicast::cluster"
_REGISTERS, _REGISTERS_BESIDE_DECODERS = (40, 232), (104, 200)
"""Registers of a thread of the producer, and of a consumer. At the start each of the three warpgroups has 168."""
_REGISTERS_OF_CLUSTERS, _REGISTERS_BESIDE_COPIES = (24, 240), (56, 224)
"""The same for blocks in clusters, with rows copied by TMA, and by the producer's threads."""
_STARTED_AHEAD = 2
"""K-tiles of gathered rows that are in flight after the one that is waited for."""
_DESCRIPTOR_UNIT = 16
"""Bytes of the unit in which descriptors count."""
ROW = SWIZZLE_BYTES // _DESCRIPTOR_UNIT
"""A row of a k-tile in shared memory, in units of descriptors."""
EIGHT_ROWS = 8 * ROW
_GROUP_STEP = GROUP_ROWS * ROW
DEPTH_STEP = MMA_DEPTH * 2 // _DESCRIPTOR_UNIT


@dataclasses.dataclass(frozen=True)
class TensorMaps:
    """The tensor maps of the matrix [E, columns, inner] and of the rows [R, inner] for TMA. None for an operand that
    the producer's threads copy or decode."""

    matrix: Any
    rows: Any

    @property
    def threads_help(self) -> bool:
        """Whether all threads of the producer take part in copying or decoding, not just the one that starts TMA."""
        return self.matrix is None or self.rows is None


@dataclasses.dataclass(frozen=True)
class Ring:
    """The stages: ``row_tiles`` and ``column_tiles`` [stages, rows or columns, inputs], the barriers ``full`` and
    ``empty`` of each stage, and ``turns`` of each consumer. ``rank``: of the block of threads in its cluster."""

    tile: WgmmaTile
    maps: TensorMaps
    row_tiles: Any
    column_tiles: Any
    full: TMABar
    empty: MBarrier
    turns: MBarrier
    rank: Any

    @property
    def bytes_by_accelerator(self) -> int:
        """Bytes of a stage that TMA copies."""
        rows = 0 if self.maps.rows is None else self.tile.rows
        columns = 0 if self.maps.matrix is None else self.tile.columns
        return (rows + columns) * SWIZZLE_BYTES

    @property
    def arrivals(self) -> int:
        """The number of arrivals that make a stage full."""
        return (WARPGROUP if self.maps.threads_help else 0) + (1 if self.bytes_by_accelerator else 0)

    @property
    def registers(self) -> tuple[int, int]:
        """Registers of a thread of the producer, and of a consumer."""
        if self.maps.matrix is None:
            return _REGISTERS_BESIDE_DECODERS
        if self.tile.cluster == 1:
            return _REGISTERS
        return _REGISTERS_BESIDE_COPIES if self.maps.rows is None else _REGISTERS_OF_CLUSTERS

    def before(self, stage: Any, count: Any = 1) -> Any:
        """The stage that is ``count`` stages before ``stage`` in the ring."""
        return T.Select(stage < count, self.tile.stages - count + stage, stage - count)


def new_ring(tile: WgmmaTile, problem: GroupedProblem, maps: TensorMaps, rank: Any) -> Ring:
    pool, depth, (_, dtype) = SharedPool(), k_tile_depth(problem.dtype), problem.row_type
    row_tiles = pool.alloc((tile.stages, tile.rows, depth), dtype, align=SWIZZLE_ALIGNMENT)
    column_tiles = pool.alloc((tile.stages, tile.columns, depth), dtype, align=SWIZZLE_ALIGNMENT)
    full, empty = TMABar(pool, tile.stages), MBarrier(pool, tile.stages, phase_offset=1)
    turns = MBarrier(pool, CONSUMERS)
    pool.commit_named(row_tiles=row_tiles, column_tiles=column_tiles, full=full, empty=empty, turns=turns)
    return Ring(tile, maps, row_tiles, column_tiles, full, empty, turns, rank)


@T.inline
def meet_cluster(tile):
    """Synchronise all threads of a cluster. That is needed before the first copy into another block, and before a block
    ends, because another block may still copy into it or arrive at its barriers."""
    if tile.cluster == 1:
        T.cuda.cta_sync()
    else:
        T.ptx.barrier.cluster.arrive.release()
        T.ptx.barrier.cluster.wait.acquire()


@T.inline
def start_ring(ring):
    """Initialise the barriers and make them visible to all threads of the cluster and to TMA."""
    ring.full.init(ring.arrivals)
    ring.empty.init(ring.tile.cluster * (CONSUMERS if ring.tile.together else 1))
    ring.turns.init(WARPGROUP // WARP)
    T.ptx.fence.mbarrier_init.release.cluster()
    meet_cluster(ring.tile)


@T.meta_class
class RingPosition(PipelineState):
    """The stage and phase of a k-tile; k-tiles are counted across all tiles of the block."""

    def __init__(self, depth: int, phase: int) -> None:
        super().__init__(depth, phase)
        for name, number in (("stage", self.stage), ("phase", self.phase)):
            IRBuilder.name(name, number.source)

    @T.inline
    def go_to(self, k_tile):
        self.stage = T.truncmod(k_tile, self.depth)
        self.phase = T.truncmod(T.truncdiv(k_tile, self.depth), 2)


@T.inline
def _copy_columns(ring, tile, stage, k_tile, part, blocks):
    """Start the copy of a part of a k-tile of the matrix to those blocks of the cluster whose bits are set in
    ``blocks``; None for this block of threads only."""
    first = T.meta_var(part * ring.tile.columns_each)
    T.ptx[_COPY_MATRIX if blocks is None else _COPY_MATRIX_TO_CLUSTER](
        ring.column_tiles.ptr_to([stage, first, 0]),
        T.address_of(ring.maps.matrix),
        k_tile * tile.depth,
        tile.first_column + first,
        tile.expert,
        ring.full.ptr_to([stage]),
        *([] if blocks is None else [T.cast(blocks, "uint16")]),
    )


@T.inline
def _start_boxes(ring, tile, stage, k_tile, shares):
    """Start TMA's copies of a stage. One thread does that. ``shares``: whether all blocks of the cluster need the same
    k-tile of the matrix."""
    ring.full.arrive(stage, ring.bytes_by_accelerator)
    if ring.maps.matrix is not None:
        if ring.tile.cluster == 1:
            _copy_columns(ring, tile, stage, k_tile, 0, None)
        else:
            everyone, alone = T.meta_var(((1 << ring.tile.cluster) - 1, 1 << ring.rank))
            _copy_columns(ring, tile, stage, k_tile, ring.rank, T.Select(shares, everyone, alone))
            if not shares:
                _copy_columns(ring, tile, stage, k_tile, ring.rank ^ 1, None)
    if ring.maps.rows is not None:
        T.ptx[_COPY_ROWS](
            ring.row_tiles.ptr_to([stage, 0, 0]),
            T.address_of(ring.maps.rows),
            k_tile * tile.depth,
            tile.operands.first_row(tile.block),
            ring.full.ptr_to([stage]),
        )


@T.inline
def arrive_written(barrier, stage):
    """Arrive at a stage's barrier after this thread's writes. The fence makes them visible to wgmma, which reads shared
    memory through another proxy than threads write it."""
    T.ptx.fence.proxy.async_.shared__cta()
    MBarrier.arrive(barrier, stage)


@T.inline
def give_back(ring, stage, thread):
    """Release a stage that the consumer has multiplied: one thread arrives at the barrier of each block of the
    cluster.

    Neither the arrival nor the wait for it names the scope of the cluster, although threads of another block take part.
    ptxas makes a barrier for the memory of the whole GPU of a release at that scope, and an invalidation of the L1
    cache of an acquire, for every k-tile. There is nothing to release: wgmma has read the stage when ``wait_group``
    returns, and no thread has written anything that the other block reads.
    """
    if ring.tile.cluster == 1:
        if thread % WARPGROUP == 0:
            ring.empty.arrive(stage)
    else:
        if thread % WARPGROUP < ring.tile.cluster:
            barrier = T.local_scalar("uint32")
            address: T.let = T.cuda.cvta_generic_to_shared(ring.empty.ptr_to([stage]))
            T.ptx.mapa.shared__cluster.u32(barrier, address, T.cast(thread % WARPGROUP, "uint32"))
            T.ptx.mbarrier.arrive.shared__cluster.b64(barrier)


@T.inline
def produce_boxes(ring, tile, position, shares):
    """Produce the k-tiles of a tile, with rows and matrix copied by TMA. One thread does that."""
    for k_tile in T.serial(tile.k_tiles, unroll=False):
        ring.empty.wait(position.stage, position.phase)
        _start_boxes(ring, tile, position.stage, k_tile, shares)
        position.advance()


@T.inline
def produce_gathered(ring, tile, position, started, shares):
    """Produce the k-tiles of a tile, with rows copied by all threads and the matrix by TMA. A thread arrives for its
    chunks of a k-tile once it has started those of the next :data:`_STARTED_AHEAD`. ``started[0]``: the number of
    k-tiles that are in flight, at most that many."""
    sources = T.alloc_local((tile.shape.rows // tile.shape.rows_per_copy,), "int32")
    find_sources(tile, sources)
    for k_tile in T.serial(tile.k_tiles):
        ring.empty.wait(position.stage, position.phase)
        if tile.thread == 0:
            _start_boxes(ring, tile, position.stage, k_tile, shares)
        copy_rows(tile, position.stage, k_tile, sources)
        T.ptx.cp.async_.commit_group()
        if started[0] == _STARTED_AHEAD:
            T.ptx.cp.async_.wait_group(_STARTED_AHEAD)
            arrive_written(ring.full, ring.before(position.stage, _STARTED_AHEAD))
        started[0] = T.min(started[0] + 1, _STARTED_AHEAD)
        position.advance()


@T.inline
def finish_gathered(ring, position, started):
    """Wait for the copies of the last k-tiles of all tiles, and arrive for them."""
    T.ptx.cp.async_.wait_group(0)
    T.ptx.fence.proxy.async_.shared__cta()
    for i in T.unroll(_STARTED_AHEAD):
        if _STARTED_AHEAD - i <= started[0]:
            MBarrier.arrive(ring.full, ring.before(position.stage, _STARTED_AHEAD - i))


@T.inline
def produce_decoded(ring, tile, position):
    """Produce the k-tiles of a tile of a quantised matrix. A thread reads the codes of a k-tile before a stage is free,
    and stores the decoded numbers while the rows arrive."""
    gathered = T.meta_var(ring.maps.rows is None)
    codes = T.alloc_local((columns_of_thread(tile), chunk_bytes(tile)), "uint8")
    scales = T.alloc_local((columns_of_thread(tile),), "float32")
    zeros = T.alloc_local((columns_of_thread(tile),), "int32")
    sources = T.alloc_local((tile.shape.rows // tile.shape.rows_per_copy,), "int32")
    fetched = T.meta_var(Fetched(codes, scales, zeros))
    if gathered:
        find_sources(tile, sources)
    fetch(tile, fetched, 0)
    for k_tile in T.serial(tile.k_tiles):
        ring.empty.wait(position.stage, position.phase)
        if gathered:
            copy_rows(tile, position.stage, k_tile, sources)
            T.ptx.cp.async_.commit_group()
        else:
            if tile.thread == 0:
                _start_boxes(ring, tile, position.stage, k_tile, True)
        decode(tile, fetched, position.stage)
        if k_tile + 1 < tile.k_tiles:
            fetch(tile, fetched, k_tile + 1)
        if gathered:
            T.ptx.cp.async_.wait_group(0)
        arrive_written(ring.full, position.stage)
        position.advance()


def multiply_instruction(columns: int, dtype: str) -> str:
    """The wgmma instruction for 64 rows and ``columns`` columns of ``dtype``, with sums in float32."""
    depth, element = k_tile_depth(dtype) * MMA_DEPTH // DEPTH, ELEMENTS[dtype]
    return f"wgmma.mma_async.sync.aligned.m{GROUP_ROWS}n{columns}k{depth}.f32.{element}.{element}"


def all_sums(sums: Any, i: Any) -> list[Any]:
    """The accumulators of the ``i``-th instruction along the rows, in the order of its operands."""
    _, columns, values = (int(size) for size in sums.shape)
    return [sums[i, j, v] for j in range(columns) for v in range(values)]


@T.inline
def clear_sums(sums):
    """Set the sums of a tile to zero. ``wgmma`` could start from zero by itself (its scale-d), but ptxas assumes that
    it always reads the registers. They would then stay allocated to the preceding tile's sums through its epilogue."""
    for i in T.unroll(sums.shape[0]):
        for j in T.unroll(sums.shape[1]):
            for v in T.unroll(sums.shape[2]):
                sums[i, j, v] = T.float32(0)


_HOLD = """__forceinline__ __device__ void hold(float* number) {
  asm volatile("" : "+f"(*number));
}
"""


@T.inline
def await_products(sums, in_flight):
    """Wait until at most ``in_flight`` groups of products are in flight, and the products of ``sums`` are not.

    The sums are no operands of ``wait_group``, so nvcc might read them before it. An empty statement that may change
    each of them stands between, and makes no instruction. CUTLASS has the same (``warpgroup_fence_operand``).
    """
    T.ptx.wgmma.wait_group.sync.aligned(in_flight)
    count = T.meta_var(math.prod(map(int, sums.shape)))
    registers = T.decl_buffer((count,), "float32", data=sums.data)
    for i in T.unroll(count):
        T.evaluate(T.cuda.func_call("hold", T.address_of(registers[i]), source_code=_HOLD))


@T.inline
def wait_for_turn(ring, consumer, tiles):
    """Wait for the turn of a consumer that has computed ``tiles`` tiles. Consumer 0 starts."""
    ring.turns.wait(consumer, T.truncmod(tiles + T.Select(consumer == 0, 1, 0), 2))


@T.inline
def consume_tile(ring, dtype, k_tiles, row_steps, position, consumer, thread, sums):
    """Add the products of a tile, whose first k-tile is at ``position``, to ``sums`` [row steps, column steps, 4];
    ``row_steps``: instructions along the rows, of which those beyond may be padding.

    A stage is released once the products of the next one have been started. The loop must not be unrolled or removed:
    if nvcc unrolls a short loop, or knows that it runs once, ptxas serialises the products (C7520).
    """
    instruction = T.meta_var(multiply_instruction(ring.tile.columns, dtype))
    left = T.local_scalar("uint64")
    right = T.local_scalar("uint64")
    for k_tile in T.serial(unknown_one() if k_tiles == 1 else k_tiles, unroll=False):
        ring.full.wait(position.stage, position.phase)
        T.cuda.wgmma.encode_matrix_descriptor(
            T.address_of(left), ring.row_tiles.ptr_to([position.stage, 0, 0]), 1, EIGHT_ROWS, SWIZZLE
        )
        T.cuda.wgmma.encode_matrix_descriptor(
            T.address_of(right), ring.column_tiles.ptr_to([position.stage, 0, 0]), 1, EIGHT_ROWS, SWIZZLE
        )
        T.ptx.wgmma.fence.sync.aligned()
        for step in T.unroll(DEPTH // MMA_DEPTH):
            for i in T.unroll(row_steps):
                T.ptx[instruction](
                    *all_sums(sums, i),
                    left + T.cast(i * _GROUP_STEP + step * DEPTH_STEP, "uint64"),
                    right + T.cast(step * DEPTH_STEP, "uint64"),
                    True,
                    1,
                    1,
                    0,
                    0,
                )
        T.ptx.wgmma.commit_group.sync.aligned()
        T.ptx.wgmma.wait_group.sync.aligned(1)
        if k_tile > 0:
            give_back(ring, ring.before(position.stage), thread)
        position.advance()
    if thread % WARP == 0:
        ring.turns.arrive(CONSUMERS - 1 - consumer)
    await_products(sums, 0)
    give_back(ring, ring.before(position.stage), thread)
