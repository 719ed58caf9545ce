"""The ring of stages in shared memory that brings k-tiles to tensor cores: the producer fills it, others empty it.

One warpgroup, the producer, fills the stages one after another, also beyond the end of a tile. A k-tile that is a box
in memory is one copy by the tensor memory accelerator (TMA). Gathered rows are scattered in memory, so they are copied
asynchronously, 16 bytes at a time. A quantised matrix is decoded by the producer's threads. Each stage has two
barriers. It is full when all copies have arrived, and empty when it has been multiplied.

Two blocks of threads in a cluster may need the same k-tiles of the matrix. Then each copies half of them to both
blocks. A stage is free only when both blocks have multiplied it, so they arrive at the barriers of both.

K-tiles are stored in the 128-byte swizzle of :mod:`.grouped_gemm_mma`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from tvm.backend.cuda.lang import MBarrier, PipelineState, TMABar
from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder

from moec.targets.cuda.kernels.mma_quantized import Fetched, chunk_bytes, columns_of_thread, decode, fetch
from moec.targets.cuda.kernels.mma_rows import copy_rows, find_sources
from moec.targets.cuda.kernels.mma_tile import MMA_DEPTH, SWIZZLE_BYTES, Tile, k_tile_depth
from moec.targets.cuda.kernels.persistent_tiles import WARPGROUP, PersistentTile, Turn, for_each_tile
from moec.targets.cuda.kernels.shared_pool import SWIZZLE_ALIGNMENT, SharedPool
from moec.targets.gpu.kernels.grouped_problem import GroupedProblem
from moec.targets.gpu.kernels.launch import WARP

SWIZZLE = 3
"""The number of the 128-byte swizzle, for TMA and for descriptors."""
_COPY_MATRIX, _COPY_ROWS = (
    f"cp.async.bulk.tensor.{rank}d.shared::cluster.global.mbarrier::complete_tx::bytes" for rank in (3, 2)
)
_COPY_MATRIX_TO_CLUSTER = f"{_COPY_MATRIX}.multicast::cluster"
_STARTED_AHEAD = 2
"""K-tiles of gathered rows that are in flight after the one that is waited for."""
_DESCRIPTOR_UNIT = 16
"""Bytes of the unit in which descriptors count."""
ROW = SWIZZLE_BYTES // _DESCRIPTOR_UNIT
"""A row of a k-tile in shared memory, in units of descriptors."""
EIGHT_ROWS = 8 * ROW
DEPTH_STEP = MMA_DEPTH * 2 // _DESCRIPTOR_UNIT
"""The inputs of one instruction, in the same units."""


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
    """The stages: ``row_tiles`` and ``column_tiles`` [stages, rows or columns, inputs], and the barriers ``full`` and
    ``empty`` of each stage. ``rank``: of the block of threads in its cluster."""

    tile: PersistentTile
    maps: TensorMaps
    rank: Any
    row_tiles: Any
    column_tiles: Any
    full: TMABar
    empty: MBarrier

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

    def before(self, stage: Any, count: Any = 1) -> Any:
        """The stage that is ``count`` stages before ``stage`` in the ring."""
        return T.Select(stage < count, self.tile.stages - count + stage, stage - count)


def stages_in(pool: SharedPool, tile: PersistentTile, problem: GroupedProblem) -> dict[str, Any]:
    """Allocate the stages and their barriers: those fields of :class:`Ring` by name."""
    depth, (_, dtype) = k_tile_depth(problem.dtype), problem.row_type
    return {
        "row_tiles": pool.alloc((tile.stages, tile.rows, depth), dtype, align=SWIZZLE_ALIGNMENT),
        "column_tiles": pool.alloc((tile.stages, tile.stored_columns, depth), dtype, align=SWIZZLE_ALIGNMENT),
        "full": TMABar(pool, tile.stages),
        "empty": MBarrier(pool, tile.stages, phase_offset=1),
    }


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
def init_stages(ring):
    """Initialise the barriers of the stages."""
    ring.full.init(ring.arrivals)
    ring.empty.init(ring.tile.releases)


@T.inline
def publish_barriers(tile):
    """Make barriers that were initialised visible to all threads of the cluster and to TMA."""
    T.ptx.fence.mbarrier_init.release.cluster()
    meet_cluster(tile)


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
def _produce_boxes(ring, tile, position, shares):
    """Produce the k-tiles of a tile, with rows and matrix copied by TMA. One thread does that."""
    for k_tile in T.serial(tile.k_tiles, unroll=False):
        ring.empty.wait(position.stage, position.phase)
        _start_boxes(ring, tile, position.stage, k_tile, shares)
        position.advance()


@T.inline
def _produce_gathered(ring, tile, position, started, shares):
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
def _finish_gathered(ring, position, started):
    """Wait for the copies of the last k-tiles of all tiles, and arrive for them."""
    T.ptx.cp.async_.wait_group(0)
    T.ptx.fence.proxy.async_.shared__cta()
    for i in T.unroll(_STARTED_AHEAD):
        if _STARTED_AHEAD - i <= started[0]:
            MBarrier.arrive(ring.full, ring.before(position.stage, _STARTED_AHEAD - i))


@T.inline
def _produce_decoded(ring, tile, position):
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


def _shares(tile: PersistentTile, turn: Turn) -> Any:
    """Whether all blocks of the cluster need the same columns of one matrix; bound to a variable if there is more than
    one block."""
    if tile.cluster == 1:
        return True
    shares = T.Bind(turn.shares)
    IRBuilder.name("shares", shares)
    return shares


@T.inline
def produce(operands, tile, ring, place, thread):
    decodes, threads_help = T.meta_var(ring.maps.matrix is None), T.meta_var(ring.maps.threads_help)
    position = T.meta_var(RingPosition(tile.stages, 0))
    started = T.alloc_local((1,), "int32")
    started[0] = 0

    @T.inline
    def produce_tile(turn):
        shape, rows, columns = T.meta_var((tile.producer_shape, ring.row_tiles, ring.column_tiles))
        of_thread = T.meta_var(
            Tile(
                operands, shape, turn.block, turn.expert, turn.first_column, thread, thread % WARP, 0, 0, rows, columns
            )
        )
        if decodes:
            _produce_decoded(ring, of_thread, position)
        elif threads_help:
            shares = T.meta_var(_shares(tile, turn))
            _produce_gathered(ring, of_thread, position, started, shares)
        else:
            shares = T.meta_var(_shares(tile, turn))
            _produce_boxes(ring, of_thread, position, shares)

    if T.Or(threads_help, thread == 0):
        for_each_tile(operands, tile, place, produce_tile)
        if threads_help and not decodes:
            _finish_gathered(ring, position, started)
