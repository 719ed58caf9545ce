"""K-tiles on their way from memory to wgmma: a ring of stages in shared memory, and who fills and empties them.

One warpgroup, the producer, fills the stages one after another, over the ends of tiles. K-tiles that lie in memory as a
box are a single copy each of the tensor memory accelerator (TMA). Rows that are gathered are scattered in memory and
come by asynchronous copies of 16 bytes; a quantised matrix is decoded by the producer's threads. A stage is full when
all copies have arrived, and empty when the consumer that it was for has multiplied it: two barriers say so.

Consumers take turns. A barrier tells the phase before from the one after, and no more: a consumer that waited for its
first k-tile while another is still far from its last could take an older phase for its own. So each waits for its turn,
which the other gives it once all k-tiles of its own tile have arrived. Each warp gives it, for warps may run apart,
and one that still waits for its turn, while another has started the only k-tile of its tile, must not miss it.

Two blocks of threads in a cluster may need the same k-tiles of the matrix. Then each has half of them copied to both,
so that a stage is free when consumers of both blocks have multiplied what was in it: they arrive at the barriers of
both.

K-tiles lie in the 128-byte swizzle, which is that of :mod:`.grouped_gemm_mma`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from tvm.backend.cuda.lang import MBarrier, PipelineState, TMABar
from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder

from moec.targets.cuda.kernels.fp8_rows import FP8
from moec.targets.cuda.kernels.grouped_problem import GroupedProblem
from moec.targets.cuda.kernels.launch import WARP, unknown_one
from moec.targets.cuda.kernels.mma_quantized import Fetched, chunk_bytes, columns_of_thread, decode, fetch
from moec.targets.cuda.kernels.mma_rows import copy_rows, find_sources
from moec.targets.cuda.kernels.mma_tile import DEPTH, MMA_DEPTH, SWIZZLE_BYTES, k_tile_depth
from moec.targets.cuda.kernels.shared_pool import SWIZZLE_ALIGNMENT, SharedPool
from moec.targets.cuda.kernels.wgmma_tile import CONSUMERS, GROUP_ROWS, WARPGROUP, WgmmaTile

SWIZZLE = 3
"""128 bytes, for the accelerator and for wgmma."""
ELEMENTS = {"float16": "f16", "bfloat16": "bf16", FP8: "e4m3"}
_COPY_MATRIX, _COPY_ROWS = (
    f"cp.async.bulk.tensor.{rank}d.shared::cluster.global.mbarrier::complete_tx::bytes" for rank in (3, 2)
)
_COPY_MATRIX_TO_CLUSTER = f"{_COPY_MATRIX}.multicast::cluster"
_REGISTERS, _REGISTERS_BESIDE_DECODERS = (40, 232), (104, 200)
"""Registers of a thread of the producer, and of a consumer: three warpgroups have 168 each at the start."""
_REGISTERS_OF_CLUSTERS, _REGISTERS_BESIDE_COPIES = (24, 240), (56, 224)
"""The same of blocks in clusters, and where the producer's threads copy rows there."""
_STARTED_AHEAD = 2
"""K-tiles of gathered rows that have been started since the one that is waited for."""
_DESCRIPTOR_UNIT = 16
"""Bytes that descriptors count in."""
ROW = SWIZZLE_BYTES // _DESCRIPTOR_UNIT
"""Of a k-tile in shared memory, in these."""
EIGHT_ROWS = 8 * ROW
_GROUP_STEP = GROUP_ROWS * ROW
DEPTH_STEP = MMA_DEPTH * 2 // _DESCRIPTOR_UNIT


@dataclasses.dataclass(frozen=True)
class TensorMaps:
    """What the accelerator knows of the matrix [E, columns, inner] and of the rows [R, inner]: None where the
    producer's threads bring them."""

    matrix: Any
    rows: Any

    @property
    def threads_help(self) -> bool:
        """Whether every thread of the producer has something to bring."""
        return self.matrix is None or self.rows is None


@dataclasses.dataclass(frozen=True)
class Ring:
    """The stages: their k-tiles [stages, rows or columns, inputs] and barriers. ``rank``: of the block of threads in
    its cluster."""

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
        """Of a stage."""
        rows = 0 if self.maps.rows is None else self.tile.rows
        columns = 0 if self.maps.matrix is None else self.tile.columns
        return (rows + columns) * SWIZZLE_BYTES

    @property
    def arrivals(self) -> int:
        """How many arrivals make a stage full."""
        return (WARPGROUP if self.maps.threads_help else 0) + (1 if self.bytes_by_accelerator else 0)

    @property
    def registers(self) -> tuple[int, int]:
        """Of a thread of the producer, and of a consumer."""
        if self.maps.matrix is None:
            return _REGISTERS_BESIDE_DECODERS
        if self.tile.cluster == 1:
            return _REGISTERS
        return _REGISTERS_BESIDE_COPIES if self.maps.rows is None else _REGISTERS_OF_CLUSTERS

    def before(self, stage: Any, count: Any = 1) -> Any:
        """The stage so many before that one."""
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
    """All threads of a cluster meet: before the first copy into another block, and before a block ends into which
    another may still copy, or at whose barriers it may arrive."""
    if tile.cluster == 1:
        T.cuda.cta_sync()
    else:
        T.ptx.barrier.cluster.arrive.release()
        T.ptx.barrier.cluster.wait.acquire()


@T.inline
def start_ring(ring):
    """All threads see the barriers from now on, and so does the accelerator."""
    ring.full.init(ring.arrivals)
    ring.empty.init(ring.tile.cluster * (CONSUMERS if ring.tile.together else 1))
    ring.turns.init(WARPGROUP // WARP)
    T.ptx.fence.mbarrier_init.release.cluster()
    meet_cluster(ring.tile)


@T.meta_class
class RingPosition(PipelineState):
    """Stage and phase of a k-tile, counted over all tiles."""

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
    """A part of the matrix, to the ``blocks`` of the cluster whose bits are set; None: to this block of threads."""
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
    """The accelerator's copies of a stage, which one thread starts."""
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
    """What this thread has written is there. wgmma reads shared memory in another way than threads write it."""
    T.ptx.fence.proxy.async_.shared__cta()
    MBarrier.arrive(barrier, stage)


@T.inline
def _wait_until_empty(ring, position):
    """The consumers of all blocks of the cluster have multiplied what was in the stage."""
    if ring.tile.cluster == 1:
        ring.empty.wait(position.stage, position.phase)
    else:
        T.cuda.mbarrier_wait_acquire_cluster(ring.empty.ptr_to([position.stage]), position.phase ^ 1)


@T.inline
def give_back(ring, stage, thread):
    """The consumer has multiplied what is in the stage: one thread says so to each block of the cluster."""
    if ring.tile.cluster == 1:
        if thread % WARPGROUP == 0:
            ring.empty.arrive(stage)
    else:
        if thread % WARPGROUP < ring.tile.cluster:
            barrier = T.local_scalar("uint32")
            address: T.let = T.cuda.cvta_generic_to_shared(ring.empty.ptr_to([stage]))
            T.ptx.mapa.shared__cluster.u32(barrier, address, T.cast(thread % WARPGROUP, "uint32"))
            T.ptx.mbarrier.arrive.release.cluster.shared__cluster.b64(barrier)


@T.inline
def produce_boxes(ring, tile, position, shares):
    """The k-tiles of a tile, rows and matrix by the accelerator: the work of one thread."""
    for k_tile in T.serial(tile.k_tiles, unroll=False):
        _wait_until_empty(ring, position)
        _start_boxes(ring, tile, position.stage, k_tile, shares)
        position.advance()


@T.inline
def produce_gathered(ring, tile, position, started, shares):
    """The k-tiles of a tile, its rows by all threads. A thread says that its chunks of a k-tile have arrived when it
    has started those of the next ones. ``started[0]``: how many there are before, at most as many as are waited for."""
    sources = T.alloc_local((tile.shape.rows // tile.shape.rows_per_copy,), "int32")
    find_sources(tile, sources)
    for k_tile in T.serial(tile.k_tiles):
        _wait_until_empty(ring, position)
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
    """The last k-tiles of all tiles have arrived too."""
    T.ptx.cp.async_.wait_group(0)
    T.ptx.fence.proxy.async_.shared__cta()
    for i in T.unroll(_STARTED_AHEAD):
        if _STARTED_AHEAD - i <= started[0]:
            MBarrier.arrive(ring.full, ring.before(position.stage, _STARTED_AHEAD - i))


@T.inline
def produce_decoded(ring, tile, position):
    """The k-tiles of a tile of a quantised matrix: a thread reads the codes of a k-tile before a stage is free, and
    stores them decoded while the rows arrive."""
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
    """Of 64 rows and so many columns, with sums in float32."""
    depth, element = k_tile_depth(dtype) * MMA_DEPTH // DEPTH, ELEMENTS[dtype]
    return f"wgmma.mma_async.sync.aligned.m{GROUP_ROWS}n{columns}k{depth}.f32.{element}.{element}"


def all_sums(sums: Any, i: Any) -> list[Any]:
    """The registers of an instruction's sums, in its order."""
    _, columns, values = (int(size) for size in sums.shape)
    return [sums[i, j, v] for j in range(columns) for v in range(values)]


@T.inline
def clear_sums(sums):
    """Before the sums of a tile. ``wgmma`` could begin with zeros by itself (its scale-d), but reads the registers for
    all that ptxas knows: they would hold the sums of the tile before until then, and not be free in its epilogue."""
    for i in T.unroll(sums.shape[0]):
        for j in T.unroll(sums.shape[1]):
            for v in T.unroll(sums.shape[2]):
                sums[i, j, v] = T.float32(0)


@T.inline
def wait_for_turn(ring, consumer, tiles):
    """Of a consumer that has computed so many tiles; the first one begins."""
    ring.turns.wait(consumer, T.truncmod(tiles + T.Select(consumer == 0, 1, 0), 2))


@T.inline
def consume_tile(ring, dtype, k_tiles, position, consumer, thread, sums):
    """What the tile whose first k-tile is at ``position`` adds to ``sums`` [row steps, column steps, 4]. A stage is
    given back when the products of the next one have been started. The loop stays one: where nvcc unrolls a short one,
    or knows that it is run once, ptxas makes the products wait for one another (C7520)."""
    shape = T.meta_var(ring.tile)
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
            for i in T.unroll(shape.row_steps):
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
    T.ptx.wgmma.wait_group.sync.aligned(0)
    give_back(ring, ring.before(position.stage), thread)
