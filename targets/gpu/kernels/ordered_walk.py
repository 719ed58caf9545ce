"""The walk of a block of threads over a sequence of expert ids, in order and without atomics.

Every warp has a contiguous part of the sequence and handles 32 ids at a time, one per lane. A first walk counts the ids
of each expert per warp. A prefix sum over the warps then gives, for each warp, the number of ids of each expert in
earlier warps. A second walk thus knows the rank of every id: the number of equal ids before it in the sequence. Nothing
depends on timing.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from tvm.script import tirx as T

from moec.targets.gpu.kernels.instructions import ALL_LANES, lanes_where, sync_block, sync_warp
from moec.targets.gpu.kernels.launch import SHARED_BYTES, WARP

_MOST_WARPS = 32
_NUMBER_BYTES = 4


def warps_for(experts: int) -> int:
    """The number of warps of the block: the most whose counts fit into shared memory, together with totals [E] and the
    first blocks [E + 1] of :mod:`.dispatch`. 0 if not even one warp's counts fit."""
    warps = _MOST_WARPS
    while warps and ((warps + 2) * experts + 1) * _NUMBER_BYTES > SHARED_BYTES:
        warps //= 2
    return warps


@dataclasses.dataclass(frozen=True)
class Walk:
    """The walk as one thread sees it. ``counts`` [warps, E]: int32, in shared memory; ``first`` and ``end``: the warp's
    part of the sequence."""

    experts: int
    warps: int
    counts: Any
    warp: Any
    lane: Any
    first: Any
    end: Any

    def is_expert(self, expert: Any) -> Any:
        """Whether the id is an expert's. Ids outside [0, E), such as -1, belong to no expert."""
        return T.And(expert >= 0, expert < self.experts)


@T.inline
def start_walk(experts, warps, thread, length, counts, body):
    """Emit ``body(walk)`` for a sequence of ``length`` ids, divided into equal parts for the warps."""
    warp: T.let = thread // WARP
    lane: T.let = thread % WARP
    share: T.let = (length + (warps - 1)) // warps
    first: T.let = T.min(warp * share, length)
    end: T.let = T.min(first + share, length)
    body(Walk(experts, warps, counts, warp, lane, first, end))


@T.inline
def clear_counts(walk):
    for step in T.serial(-(-walk.experts // WARP)):
        if step * WARP + walk.lane < walk.experts:
            walk.counts[walk.warp, step * WARP + walk.lane] = 0
    sync_warp()


@T.inline
def rank_in_warp(walk, expert, same, before, number):
    """Count lanes with the same expert as this lane: ``before`` among lower lanes, ``number`` among all lanes. They are
    found by comparing the ids bit by bit. A lane without an expert has E, which is no valid id."""
    same[0] = T.uint32(ALL_LANES)
    for bit in T.unroll(walk.experts.bit_length()):
        mine: T.let = (expert[0] >> bit) & 1
        ones: T.let = lanes_where(mine)
        same[0] = same[0] & T.Select(mine == 1, ones, ~ones)
    before[0] = T.cast(T.popcount(same[0] & ((T.uint32(1) << T.cast(walk.lane, "uint32")) - T.uint32(1))), "int32")
    number[0] = T.cast(T.popcount(same[0]), "int32")


@T.inline
def walk_in_order(walk, id_at, visit):
    """Emit ``visit(place, expert, rank)`` for every place of the warp's part whose id, ``id_at(place)``, is an expert.
    The rank is the expert's count before this walk plus the number of equal ids that the walk met before. The walk
    increases the counts by the ids that it meets."""
    expert = T.alloc_local((1,), "int32")
    same = T.alloc_local((1,), "uint32")
    before = T.alloc_local((1,), "int32")
    number = T.alloc_local((1,), "int32")
    for step in T.serial(T.ceildiv(walk.end - walk.first, WARP)):
        place: T.let = walk.first + step * WARP + walk.lane
        expert[0] = walk.experts
        if place < walk.end:
            expert[0] = id_at(place)
            if T.Not(walk.is_expert(expert[0])):
                expert[0] = walk.experts
        rank_in_warp(walk, expert, same, before, number)
        if expert[0] < walk.experts:
            visit(place, expert[0], walk.counts[walk.warp, expert[0]] + before[0])
        sync_warp()
        if T.And(expert[0] < walk.experts, before[0] == 0):
            walk.counts[walk.warp, expert[0]] = walk.counts[walk.warp, expert[0]] + number[0]
        sync_warp()


@T.inline
def start_after_earlier_warps(walk, thread, totals):
    """Replace the counts of each warp by the sums over all earlier warps, and set ``totals`` [E] to the sums over all
    warps."""
    running = T.alloc_local((1,), "int32")
    sync_block()
    for step in T.serial(-(-walk.experts // (walk.warps * WARP))):
        expert: T.let = step * (walk.warps * WARP) + thread
        if expert < walk.experts:
            running[0] = 0
            for warp in T.serial(walk.warps):
                count: T.let = walk.counts[warp, expert]
                walk.counts[warp, expert] = running[0]
                running[0] = running[0] + count
            totals[expert] = running[0]
    sync_block()
