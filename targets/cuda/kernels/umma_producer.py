"""The producer of k-tiles for tcgen05: one thread starts copies by the tensor memory accelerator (TMA), and all
threads of its warpgroup decode a quantised matrix.

Rows that follow one another are one copy. Gathered rows come four at a time, which are named by number (``gather4``). A
lane copies the same four rows of every k-tile. Padding has a number that no row has, so TMA writes zeros. A warp starts
the copies of its lanes one after another, because the instruction takes its operands from registers of the warp; each
of the four warps therefore has a quarter of the rows.

A pair of blocks of threads fills a stage in the shared memory of both, and all copies complete on the barrier of the
block that multiplies, the first. It expects the bytes of both.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from moec.targets.cuda.kernels.mma_quantized import Fetched, chunk_bytes, columns_of_thread, decode, fetch
from moec.targets.cuda.kernels.mma_tile import Tile
from moec.targets.cuda.kernels.persistent_tiles import WARPGROUP, Turn, for_each_tile
from moec.targets.cuda.kernels.tile_ring import RingPosition
from moec.targets.cuda.kernels.umma_sums import UmmaRing
from moec.targets.cuda.kernels.umma_tile import UmmaTile, is_half, own_rows
from moec.targets.gpu.kernels.grouped_problem import GroupedProblem
from moec.targets.gpu.kernels.launch import WARP

_COPY_MATRIX, _COPY_ROWS, _GATHER_ROWS = (
    f"cp.async.bulk.tensor.{kind}.mbarrier::complete_tx::bytes.cta_group::{{}}"
    for kind in (
        "3d.shared::cluster.global.tile",
        "2d.shared::cluster.global.tile",
        "2d.shared::cluster.global.tile::gather4",
    )
)
_GATHERED = 4
"""Rows of one gathered copy."""
_NO_ROW = -1
"""The number of a row outside of the tensor, for which TMA writes zeros."""


def _first_column(tile: UmmaTile, problem: GroupedProblem, turn: Turn, rank: Any) -> Any:
    """The first column that a block of threads holds. All columns of the second block may lie beyond the last one.
    TMA writes zeros for them; threads that decode read existing columns instead, whose sums are not stored."""
    first, each = turn.first_column + rank * tile.columns_each, tile.columns_each
    may_lie_beyond = problem.columns % each == 0 and problem.columns % tile.columns != 0
    return T.min(first, problem.columns - each) if problem.decodes and may_lie_beyond else first


def _barrier(ring: UmmaRing, stage: Any) -> Any:
    """The address of a stage's barrier in the block of threads that multiplies."""
    own = T.cuda.cvta_generic_to_shared(ring.full.ptr_to([stage]))
    if ring.tile.cluster == 1:
        return own
    mapped = T.local_scalar("uint32")
    T.evaluate(T.ptx.mapa.shared__cluster.u32(mapped, own, T.uint32(0)))
    return mapped


def _gathering_lanes(tile: UmmaTile) -> int:
    """Lanes of a warp that gather rows."""
    return tile.rows // (WARPGROUP // WARP) // _GATHERED


def _gathered_row(tile: UmmaTile, thread: Any) -> Any:
    """The first row of a k-tile that a thread gathers."""
    return (thread // WARP * _gathering_lanes(tile) + thread % WARP) * _GATHERED


@T.inline
def _find_rows(ring, tile, first_row, half, sources):
    """Look up the rows that this thread gathers, into ``sources`` [4]."""
    rows = T.meta_var(ring.tile.rows)
    used = T.meta_var(rows if ring.tile.cluster == 1 else T.Select(half, rows // 2, rows))
    for i in T.unroll(_GATHERED):
        row: T.let = _gathered_row(ring.tile, tile.thread) + i
        sources[i] = _NO_ROW
        if T.And(tile.lane < _gathering_lanes(ring.tile), row < used):
            pair: T.let = tile.operands.pair(tile.block, first_row + row)
            if pair >= 0:
                sources[i] = tile.operands.source(pair, tile.block, first_row + row)


@T.inline
def _gather_rows(ring, tile, stage, k_tile, sources, barrier):
    """Start the copy of this thread's rows."""
    if tile.lane < _gathering_lanes(ring.tile):
        T.ptx[_GATHER_ROWS.format(ring.tile.cluster)](
            ring.row_tiles.ptr_to([stage, _gathered_row(ring.tile, tile.thread), 0]),
            T.address_of(ring.maps.rows),
            k_tile * tile.depth,
            *[sources[i] for i in range(_GATHERED)],
            barrier,
        )


@T.inline
def _start_copies(ring, tile, stage, k_tile, first_row, sources):
    """Start this thread's copies of a stage: the first thread all except for gathered rows, and a matrix that is
    decoded."""
    group = T.meta_var(ring.tile.cluster)
    barrier = T.meta_var(_barrier(ring, stage))
    if tile.thread == 0:
        if ring.rank == 0:
            ring.full.arrive(stage, ring.bytes_by_accelerator)
        if ring.maps.matrix is not None:
            T.ptx[_COPY_MATRIX.format(group)](
                ring.column_tiles.ptr_to([stage, 0, 0]),
                T.address_of(ring.maps.matrix),
                k_tile * tile.depth,
                tile.first_column,
                tile.expert,
                barrier,
            )
        if tile.operands.rows_follow_blocks:
            T.ptx[_COPY_ROWS.format(group)](
                ring.row_tiles.ptr_to([stage, 0, 0]),
                T.address_of(ring.maps.rows),
                k_tile * tile.depth,
                tile.operands.first_row(tile.block) + first_row,
                barrier,
            )
    if not tile.operands.rows_follow_blocks:
        _gather_rows(ring, tile, stage, k_tile, sources, barrier)


@T.inline
def _arrive_decoded(ring, stage):
    """Arrive at a stage's barrier after this thread's writes. The fence makes them visible to tensor cores, which read
    shared memory through another proxy than threads write it."""
    T.ptx.fence.proxy.async_.shared__cta()
    if ring.tile.cluster == 1:
        T.ptx.mbarrier.arrive.shared.b64(ring.full.ptr_to([stage]), T.uint32(1))
    else:
        barrier = T.meta_var(_barrier(ring, stage))
        T.ptx.mbarrier.arrive.shared__cluster.b64(barrier)


@T.inline
def _produce_copied(ring, tile, position, first_row, sources):
    """Produce the k-tiles of a tile, all of them copied by TMA."""
    for k_tile in T.serial(tile.k_tiles, unroll=False):
        ring.empty.wait(position.stage, position.phase)
        _start_copies(ring, tile, position.stage, k_tile, first_row, sources)
        position.advance()


@T.inline
def _produce_decoded(ring, tile, position, first_row, sources):
    """Produce the k-tiles of a tile of a quantised matrix. A thread reads the codes of a k-tile before a stage is free,
    and stores the decoded numbers while the rows arrive."""
    codes = T.alloc_local((columns_of_thread(tile), chunk_bytes(tile)), "uint8")
    scales = T.alloc_local((columns_of_thread(tile),), "float32")
    zeros = T.alloc_local((columns_of_thread(tile),), "int32")
    fetched = T.meta_var(Fetched(codes, scales, zeros))
    fetch(tile, fetched, 0)
    for k_tile in T.serial(tile.k_tiles):
        ring.empty.wait(position.stage, position.phase)
        _start_copies(ring, tile, position.stage, k_tile, first_row, sources)
        decode(tile, fetched, position.stage)
        if k_tile + 1 < tile.k_tiles:
            fetch(tile, fetched, k_tile + 1)
        _arrive_decoded(ring, position.stage)
        position.advance()


def _takes_part(operands: Any, tile: UmmaTile, thread: Any) -> Any:
    """Whether a thread has work in every stage. One without must not wait for stages either: nothing would keep it from
    falling behind by two phases of a barrier, which it could not tell from none."""
    if operands.problem.decodes:
        return True
    return thread == 0 if operands.rows_follow_blocks else thread % WARP < _gathering_lanes(tile)


@T.inline
def produce(operands, tile, ring, place, thread):
    """Produce the k-tiles of all tiles of this block of threads."""
    decodes = T.meta_var(ring.maps.matrix is None)
    position = T.meta_var(RingPosition(tile.stages, 0))

    @T.inline
    def produce_tile(turn):
        half = T.meta_var(is_half(tile, operands, turn.block))
        first_row = T.meta_var(own_rows(tile, half, ring.rank))
        first_column = T.meta_var(_first_column(tile, operands.problem, turn, ring.rank))
        shape, block, expert, lane = T.meta_var((tile.producer_shape, turn.block, turn.expert, thread % WARP))
        tiles = T.meta_var((ring.row_tiles, ring.column_tiles))
        of_thread = T.meta_var(Tile(operands, shape, block, expert, first_column, thread, lane, 0, 0, *tiles))
        sources = T.alloc_local((_GATHERED,), "int32")
        if not operands.rows_follow_blocks:
            _find_rows(ring, of_thread, first_row, half, sources)
        if decodes:
            _produce_decoded(ring, of_thread, position, first_row, sources)
        else:
            _produce_copied(ring, of_thread, position, first_row, sources)

    if _takes_part(operands, tile, thread):
        for_each_tile(operands, tile, place, produce_tile)
