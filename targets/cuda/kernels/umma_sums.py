"""Sums of tiles in tensor memory: two accumulators, which one warp multiplies into and four others empty.

While the epilogue takes the sums of one tile, the warp multiplies the next. Each accumulator has two barriers:
``computed`` when the last products of a tile are complete, ``drained`` when all of its sums are in registers. Of a pair
of blocks of threads, the first multiplies for both; commits arrive at the barriers of both, and the epilogues of both
drain an accumulator.

An address of tensor memory has its lane in the upper 16 bits and its column in the lower. A warp reaches 32 lanes, from
32 times its number modulo 4 on. ``tcgen05.ld.16x256b`` gives a lane of the warp those sums that ``mma.sync`` would
leave there, so both have the same epilogue (:mod:`.mma_store`).
"""

from __future__ import annotations

import dataclasses
from typing import Any

from tvm.backend.cuda.cpp.descriptors import encode_instr_descriptor_dense_uint32
from tvm.backend.cuda.lang import MBarrier
from tvm.script import tirx as T

from moec.targets.cuda.kernels.held_registers import hold
from moec.targets.cuda.kernels.mma_tile import MMA_COLUMNS, MMA_DEPTH, MMA_ROWS, MMA_STEPS, SWIZZLE_BYTES
from moec.targets.cuda.kernels.persistent_tiles import WARPGROUP
from moec.targets.cuda.kernels.shared_pool import SharedPool
from moec.targets.cuda.kernels.tile_ring import (
    DEPTH_STEP,
    EIGHT_ROWS,
    SWIZZLE,
    Ring,
    TensorMaps,
    init_stages,
    meet_cluster,
    publish_barriers,
    stages_in,
)
from moec.targets.cuda.kernels.umma_tile import ACCUMULATORS, UmmaTile
from moec.targets.gpu.kernels.grouped_problem import GroupedProblem
from moec.targets.gpu.kernels.launch import WARP

MULTIPLYING_WARP = 2 * WARPGROUP // WARP
"""The warp that allocates tensor memory and multiplies. Those of the producer and of the epilogue come before it."""
_ALLOCATE, _RELINQUISH, _FREE = (
    "tcgen05.alloc.cta_group::{}.sync.aligned.shared::cta.b32",
    "tcgen05.relinquish_alloc_permit.cta_group::{}.sync.aligned",
    "tcgen05.dealloc.cta_group::{}.sync.aligned.b32",
)
_MULTIPLY = "tcgen05.mma.cta_group::{}.kind::f16"
_COMMIT = "tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64"
_COMMIT_TO_BOTH = "tcgen05.commit.cta_group::2.mbarrier::arrive::one.shared::cluster.multicast::cluster.b64"
_BOTH = 3
"""A bit for each block of a pair."""
_BEFORE_SYNC, AFTER_SYNC = (f"tcgen05.fence::{which}_thread_sync" for which in ("before", "after"))
_AWAIT_LOADS = "tcgen05.wait::ld.sync.aligned"
_KEPT_LANES = (0, 0, 0, 0)
"""A bit for each lane of a block of threads whose sums stay as they are: none."""
LANE = 1 << 16
"""One lane in an address of tensor memory."""


@dataclasses.dataclass(frozen=True)
class UmmaRing(Ring):
    """The ring with the barriers of each accumulator, and the ``address`` [1] of tensor memory."""

    tile: UmmaTile
    computed: MBarrier
    drained: MBarrier
    address: Any

    @property
    def bytes_by_accelerator(self) -> int:
        """Bytes of a stage that TMA copies, to both blocks of a pair."""
        columns = 0 if self.maps.matrix is None else self.tile.columns
        return (self.tile.cluster * self.tile.rows + columns) * SWIZZLE_BYTES

    @property
    def arrivals(self) -> int:
        """The arrival with these bytes, and one of each thread that decodes."""
        return 1 + (self.tile.cluster * WARPGROUP if self.maps.threads_help else 0)


def new_ring(tile: UmmaTile, problem: GroupedProblem, maps: TensorMaps, rank: Any) -> UmmaRing:
    pool = SharedPool()
    stages = stages_in(pool, tile, problem)
    computed, drained = MBarrier(pool, ACCUMULATORS), MBarrier(pool, ACCUMULATORS, phase_offset=1)
    address = pool.alloc((1,), "uint32", align=4)
    pool.commit_named(**stages, computed=computed, drained=drained, tensor_memory=address)
    return UmmaRing(tile, maps, rank, **stages, computed=computed, drained=drained, address=address)


@T.inline
def start_ring(ring, warp):
    """Initialise the barriers, allocate tensor memory, and make both visible to all threads."""
    init_stages(ring)
    ring.computed.init(1)
    ring.drained.init(ring.tile.cluster * WARPGROUP // WARP)
    if warp == MULTIPLYING_WARP:
        T.ptx[_ALLOCATE.format(ring.tile.cluster)](ring.address.ptr_to([0]), T.uint32(ring.tile.allocated_columns))
        T.ptx[_RELINQUISH.format(ring.tile.cluster)]()
    publish_barriers(ring.tile)


@T.inline
def finish_ring(ring, warp):
    """Free tensor memory when no thread of the cluster needs this block any more."""
    meet_cluster(ring.tile)
    if warp == MULTIPLYING_WARP:
        T.ptx[_FREE.format(ring.tile.cluster)](ring.address[0], T.uint32(ring.tile.allocated_columns))


def _instruction_descriptor(tile: UmmaTile, dtype: str, half: Any) -> Any:
    """Sizes and types of an instruction whose operands both lie row by row in shared memory, with sums in float32."""

    def described(rows: int) -> Any:
        sizes = (rows, tile.columns, MMA_DEPTH)
        return T.uint32(
            encode_instr_descriptor_dense_uint32(*sizes, "float32", dtype, dtype, False, False, tile.cluster)
        )

    return described(tile.rows) if tile.cluster == 1 else T.Select(half, described(tile.rows), described(2 * tile.rows))


@T.inline
def _commit(ring, barrier):
    """Arrive at a barrier, in both blocks of a pair, when the products that this thread has started are complete."""
    if ring.tile.cluster == 1:
        T.ptx[_COMMIT](barrier)
    else:
        T.ptx[_COMMIT_TO_BOTH](barrier, T.uint16(_BOTH))


@T.inline
def multiply_tile(ring, tile, half, memory, position, accumulator):
    """Compute the sums of a tile, whose first k-tile is at ``position``, in an accumulator. ``memory``: the address of
    tensor memory; ``half``: see :func:`~moec.targets.cuda.kernels.umma_tile.is_half`.

    All threads of the warp wait for a k-tile, and one of them starts its products. ptxas then knows that the values
    which the instruction needs are the same in the whole warp; it makes a loop over threads where one is alone.
    """
    descriptor: T.let = _instruction_descriptor(ring.tile, tile.problem.dtype, half)
    kept = T.meta_var(_KEPT_LANES * ring.tile.cluster)
    left = T.local_scalar("uint64")
    right = T.local_scalar("uint64")
    sums: T.let = memory + T.cast(accumulator.stage * ring.tile.accumulator_columns, "uint32")
    ring.drained.wait(accumulator.stage, accumulator.phase)
    for k_tile in T.serial(tile.k_tiles, unroll=False):
        ring.full.wait(position.stage, position.phase)
        T.ptx[AFTER_SYNC]()
        T.cuda.tcgen05.encode_matrix_descriptor(
            T.address_of(left), ring.row_tiles.ptr_to([position.stage, 0, 0]), 1, EIGHT_ROWS, SWIZZLE
        )
        T.cuda.tcgen05.encode_matrix_descriptor(
            T.address_of(right), ring.column_tiles.ptr_to([position.stage, 0, 0]), 1, EIGHT_ROWS, SWIZZLE
        )
        if T.cuda.elect_sync():
            for step in T.unroll(MMA_STEPS):
                inside = T.meta_var(T.cast(step * DEPTH_STEP, "uint64"))
                adds = T.meta_var(T.Or(k_tile > 0, step > 0))
                T.ptx[_MULTIPLY.format(ring.tile.cluster)](sums, left + inside, right + inside, descriptor, *kept, adds)
            _commit(ring, ring.empty.ptr_to([position.stage]))
        T.cuda.warp_sync()
        position.advance()
    if T.cuda.elect_sync():
        _commit(ring, ring.computed.ptr_to([accumulator.stage]))
    T.cuda.warp_sync()
    accumulator.advance()


def _load(sums: Any, address: Any) -> None:
    """Emit loads of ``sums`` [row steps, steps of 8 columns, 4] from an address on. An instruction loads a power of two
    of steps."""
    rows, columns, values = (int(size) for size in sums.shape)
    for i in range(rows):
        first = 0
        while first < columns:
            count = 1 << (columns - first).bit_length() - 1
            registers = [sums[i, first + j, v] for j in range(count) for v in range(values)]
            place = address + T.uint32(i * MMA_ROWS * LANE + first * MMA_COLUMNS)
            T.evaluate(T.ptx[f"tcgen05.ld.sync.aligned.16x256b.x{count}.b32"](*registers, place))
            first += count


@T.inline
def take_part(ring, thread, sums, address, accumulator, last):
    """Take the sums of a part of a tile from an address on to registers. After the ``last`` part of a tile, the
    accumulator is given back to the block of threads that multiplies."""
    _load(sums, address)
    T.ptx[_AWAIT_LOADS]()
    hold(sums)
    if last:
        T.ptx[_BEFORE_SYNC]()
        if thread % WARP == 0:
            MBarrier.arrive(ring.drained, accumulator.stage, None if ring.tile.cluster == 1 else 0)
