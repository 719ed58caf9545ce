"""Consumers of the ring of stages (:mod:`.tile_ring`) that multiply with wgmma.

Consumers take turns. A barrier distinguishes only a phase from the next one. A consumer that waited for its first
k-tile while the other is still far from its last one could therefore mistake an older phase for its own. So each waits
for its turn, which the other passes on once all k-tiles of its own tile have arrived. Each warp passes it on
separately, because warps may run apart: a warp that still waits for its turn, while another has already started the
only k-tile of its tile, must not miss it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from tvm.backend.cuda.lang import MBarrier
from tvm.script import tirx as T

from moec.targets.cuda.kernels.grid import unknown_one
from moec.targets.cuda.kernels.held_registers import hold
from moec.targets.cuda.kernels.mma_tile import DEPTH, MMA_DEPTH, k_tile_depth
from moec.targets.cuda.kernels.persistent_tiles import WARPGROUP
from moec.targets.cuda.kernels.shared_pool import SharedPool
from moec.targets.cuda.kernels.tile_ring import (
    DEPTH_STEP,
    EIGHT_ROWS,
    ROW,
    SWIZZLE,
    Ring,
    TensorMaps,
    init_stages,
    publish_barriers,
    stages_in,
)
from moec.targets.cuda.kernels.wgmma_tile import CONSUMERS, GROUP_ROWS, WgmmaTile
from moec.targets.gpu.kernels.fp8_rows import FP8
from moec.targets.gpu.kernels.grouped_problem import GroupedProblem
from moec.targets.gpu.kernels.launch import WARP

ELEMENTS = {"float16": "f16", "bfloat16": "bf16", FP8: "e4m3"}
_REGISTERS, _REGISTERS_BESIDE_DECODERS = (40, 232), (104, 200)
"""Registers of a thread of the producer, and of a consumer. At the start each of the three warpgroups has 168."""
_REGISTERS_OF_CLUSTERS, _REGISTERS_BESIDE_COPIES = (24, 240), (56, 224)
"""The same for blocks in clusters, with rows copied by TMA, and by the producer's threads."""
_GROUP_STEP = GROUP_ROWS * ROW


@dataclasses.dataclass(frozen=True)
class WgmmaRing(Ring):
    """The ring with the barriers of the ``turns`` of each consumer."""

    tile: WgmmaTile
    turns: MBarrier

    @property
    def registers(self) -> tuple[int, int]:
        """Registers of a thread of the producer, and of a consumer."""
        if self.maps.matrix is None:
            return _REGISTERS_BESIDE_DECODERS
        if self.tile.cluster == 1:
            return _REGISTERS
        return _REGISTERS_BESIDE_COPIES if self.maps.rows is None else _REGISTERS_OF_CLUSTERS


def new_ring(tile: WgmmaTile, problem: GroupedProblem, maps: TensorMaps, rank: Any) -> WgmmaRing:
    pool = SharedPool()
    stages = stages_in(pool, tile, problem)
    turns = MBarrier(pool, CONSUMERS)
    pool.commit_named(**stages, turns=turns)
    return WgmmaRing(tile, maps, rank, **stages, turns=turns)


@T.inline
def start_ring(ring):
    """Initialise the barriers and make them visible to all threads of the cluster and to TMA."""
    init_stages(ring)
    ring.turns.init(WARPGROUP // WARP)
    publish_barriers(ring.tile)


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


@T.inline
def await_products(sums, in_flight):
    """Wait until at most ``in_flight`` groups of products are in flight, and the products of ``sums`` are not. The sums
    are no operands of ``wait_group``; CUTLASS has the same fence (``warpgroup_fence_operand``)."""
    T.ptx.wgmma.wait_group.sync.aligned(in_flight)
    hold(sums)


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
