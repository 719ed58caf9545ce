"""The cycles of a block of an attention, and the bytes that all blocks move.

A block walks over the keys that its queries see. In a causal attention later blocks walk over more keys, and a launch
takes at least as long as its longest block.
"""

from __future__ import annotations

import dataclasses

from moec.targets.cuda.launch_model.cycles import BlockCycles
from moec.targets.cuda.launch_model.gpus import LONE_WARP_CYCLES, SHARED_CYCLES, SPECIAL_LANES, Gpu
from moec.targets.cuda.launch_model.loops import Issued
from moec.targets.cuda.launch_model.plans import AttentionPlan
from moec.targets.cuda.launch_model.traffic import Traffic, kept, stays

_STATISTICS_BYTES = 8
"""Bytes of a row's statistics for a part of the keys: its largest score and the sum of its weights."""
_SUM_BYTES = 4
_BARRIERS = 4
"""Barriers of a block per tile if all of its warps copy and multiply. Each takes about a latency of shared memory."""


@dataclasses.dataclass(frozen=True)
class AttentionSizes:
    """The sizes of an attention: ``queries`` and ``keys`` of each of ``sequences``, and the number of ``parts`` that
    the keys are divided into."""

    sequences: int
    queries: int
    keys: int
    parts: int

    def frontier(self, query: int, causal: str) -> int:
        """The number of keys that a query sees, if all keys are in use."""
        if not causal:
            return self.keys
        return min(max(query + 1 + (0 if causal == "first" else self.keys - self.queries), 0), self.keys)

    def seen(self, causal: str) -> int:
        """The number of pairs of a query and a key that it sees, in one sequence."""
        return sum(self.frontier(query, causal) for query in range(self.queries))


@dataclasses.dataclass(frozen=True)
class KeyWalk:
    """The blocks of a launch, the tiles of keys that they walk over in all, and the most tiles of one block."""

    blocks: int
    tiles: int
    longest: int


def walk_of(plan: AttentionPlan, sizes: AttentionSizes) -> KeyWalk:
    rows = sizes.queries * plan.heads
    copies, tiles, longest = sizes.sequences * plan.slices, 0, 0
    of_part = -(-sizes.keys // sizes.parts)
    for first in range(0, rows, plan.rows):
        last = min((first + plan.rows - 1) // plan.heads, sizes.queries - 1)
        end = sizes.frontier(last, plan.causal)
        lengths = [-(-min(max(end - part * of_part, 0), of_part) // plan.keys) for part in range(sizes.parts)]
        tiles, longest = tiles + sum(lengths), max(longest, *lengths)
    return KeyWalk(copies * -(-rows // plan.rows) * sizes.parts, copies * tiles, longest)


def attention_cycles(
    plan: AttentionPlan, gpu: Gpu, issued: Issued | None, tiles: float, *, from_memory: bool
) -> BlockCycles:
    """The cycles of a block that walks over ``tiles`` tiles of keys. ``from_memory``: whether keys and values are in no
    cache."""
    rate = gpu.tensor_rate(plan.dtype, plan.unit) / gpu.multiprocessors / gpu.clock
    numbers = plan.head_size + plan.columns
    unit = "tensor cores" if plan.unit != "fma" else "float units"
    products = 2 * plan.rows * plan.keys * numbers / rate
    weights = plan.rows * plan.keys / SPECIAL_LANES  # an exponential each
    loads = plan.keys * numbers * plan.key_bytes / gpu.l2_bytes_per_cycle
    latency = plan.waits * (gpu.memory_cycles if from_memory else gpu.l2_cycles)
    busy = {unit: products, "special functions": weights, "L2": loads}
    beside = weights
    if issued is not None:
        slots = issued.per_step / gpu.issue_slots
        busy |= {"issue slots": slots, "copying warps": issued.copying * LONE_WARP_CYCLES}
        beside = max(weights, slots)
    computing = max(products, beside) if plan.weighs_meanwhile else products + beside + _BARRIERS * SHARED_CYCLES
    step = max(computing + (0 if plan.ahead else latency), latency, *busy.values())
    busy = {name: tiles * cycles for name, cycles in busy.items()}
    row = plan.rows * numbers * plan.row_bytes / gpu.l2_bytes_per_cycle
    once = max(row, issued.once / gpu.issue_slots) if issued is not None else row
    return BlockCycles(busy, tiles * step - max(busy.values()) + 2 * gpu.l2_cycles + once)


def attention_traffic(plan: AttentionPlan, gpu: Gpu, sizes: AttentionSizes, walk: KeyWalk) -> Traffic:
    """The bytes that a launch moves. Keys beyond the number of queries are older and come from memory. The other keys,
    queries and results are written or read by neighbouring launches, so the cache may hold them."""
    key = (plan.head_size + plan.columns * plan.slices) * plan.key_bytes
    keys, before = sizes.keys * key, max(sizes.keys - sizes.queries, 0) * key
    rows = sizes.sequences * sizes.queries * plan.heads
    ends = rows * (plan.head_size + plan.columns * plan.slices) * plan.row_bytes
    partial = 0.0
    if sizes.parts > 1:
        partial = rows * sizes.parts * (plan.columns * plan.slices * _SUM_BYTES + _STATISTICS_BYTES)
    tile = plan.keys * (plan.head_size + plan.columns) * plan.key_bytes
    read = min(walk.tiles * tile, walk.blocks * keys)
    at_once = min(-(-gpu.multiprocessors * sizes.sequences // max(walk.blocks, 1)), sizes.sequences)
    fresh = sizes.sequences * (keys - before)
    moved = sizes.sequences * before + kept(gpu, fresh) if stays(gpu, at_once * keys) else read
    return Traffic(moved + kept(gpu, ends) + kept(gpu, partial), read + ends + partial)


def attention_operations(plan: AttentionPlan, sizes: AttentionSizes) -> float:
    """The operations for keys that queries see; each score counts once, even if several slices compute it."""
    return 2.0 * sizes.sequences * plan.heads * sizes.seen(plan.causal) * (plan.head_size + plan.columns * plan.slices)


def attention_least_bytes(plan: AttentionPlan, sizes: AttentionSizes) -> float:
    """The bytes of queries, keys, values and results, once each."""
    numbers = plan.head_size + plan.columns * plan.slices
    keys = sizes.keys * plan.key_bytes
    return float(sizes.sequences * numbers * (keys + sizes.queries * plan.heads * plan.row_bytes))
