"""The time of one launch, predicted: the longest of what memory takes and what the multiprocessors take.

Blocks are spread over the multiprocessors in waves of as many as these hold at once, and each wave takes as long as its
blocks do (:mod:`.cycles`): the last one may be nearly empty. Kernels of a captured graph begin one after another;
one that begins early waits for the one before, but not for its launch.
What is left out: clocks that change, conflicts of banks, atomics, and whatever a manual does not say.
"""

from __future__ import annotations

import dataclasses

from moec.targets.cuda.launch_model.attention import (
    AttentionSizes,
    attention_cycles,
    attention_least_bytes,
    attention_operations,
    attention_traffic,
    walk_of,
)
from moec.targets.cuda.launch_model.cycles import (
    LATENCY,
    BlockCycles,
    stream_cycles,
    tile_cycles,
    walk_cycles,
    warp_cycles,
)
from moec.targets.cuda.launch_model.gpus import EARLY_TRIPS, LAUNCH_SECONDS, Gpu
from moec.targets.cuda.launch_model.loops import Issued
from moec.targets.cuda.launch_model.occupancy import Occupancy, occupancy
from moec.targets.cuda.launch_model.plans import AttentionPlan, LaunchPlan, StreamPlan, TilePlan, WalkPlan, WarpPlan
from moec.targets.cuda.launch_model.rows import Spread
from moec.targets.cuda.launch_model.traffic import (
    Traffic,
    least_bytes,
    own_share,
    tensor_traffic,
    tile_traffic,
    warp_traffic,
)

MEMORY = "memory"


@dataclasses.dataclass(frozen=True)
class LaunchFacts:
    """What the host launches at some number of tokens. ``bytes_read`` and ``bytes_written``: of the tensors that the
    plan of a stream names, or of all of them; ``steps``: of a walk; ``attention``: the sizes of one; ``overlaps``: it
    begins early, and the launch before lets it."""

    blocks: int
    threads: int
    registers: int
    shared_bytes: int
    bytes_read: float = 0.0
    bytes_written: float = 0.0
    steps: int = 0
    issued: Issued | None = None
    attention: AttentionSizes | None = None
    overlaps: bool = False


@dataclasses.dataclass(frozen=True)
class Prediction:
    """``blocks``: those that have work; ``waves``: of them; ``tail``: the share of all waves' room that they fill;
    ``operations``: of what is asked for, without padding; ``seconds``: from the end of the kernel before to its own;
    ``roofline``: the least time at the published peaks, as a share of that."""

    occupancy: Occupancy
    blocks: int
    waves: int
    tail: float
    traffic: Traffic
    operations: float
    seconds: float
    limit: str
    roofline: float


def predict(plan: LaunchPlan, gpu: Gpu, facts: LaunchFacts, spread: Spread, tokens: int) -> Prediction:
    """Of a launch whose blocks fit; ``spread``: of the pairs of ``tokens`` over the experts of the kernel."""
    held = occupancy(gpu, facts.threads, facts.registers, facts.shared_bytes)
    room = gpu.multiprocessors * held.blocks
    blocks, cycles, traffic, least_taken = _work(plan, gpu, facts, spread, tokens, room)
    waves = max(-(-blocks // room), 1)
    taken, unit = max(_cycles_of_waves(gpu, held, blocks, cycles), least_taken)
    idle = 0 if isinstance(plan, TilePlan) and plan.persistent else max(facts.blocks - blocks, 0)
    taken += idle / room * gpu.l2_cycles  # each looks up whether there is work, and leaves
    busy, moving = taken / gpu.clock, traffic.memory / gpu.memory_reached
    if moving:
        moving += gpu.memory_cycles / gpu.clock  # until the first bytes come
    seconds, limit = max((busy, unit), (moving, MEMORY))
    seconds += EARLY_TRIPS * gpu.l2_cycles / gpu.clock if facts.overlaps else LAUNCH_SECONDS
    operations, least = _least(plan, gpu, facts, spread, tokens, traffic)
    return Prediction(
        held, blocks, waves, blocks / (waves * room), traffic, operations, seconds, limit, least / seconds
    )


def _work(
    plan: LaunchPlan, gpu: Gpu, facts: LaunchFacts, spread: Spread, tokens: int, room: int
) -> tuple[int, BlockCycles, Traffic, tuple[float, str]]:
    """Blocks that have work (of persistent ones, their tiles), the cycles of one, what all move, and the cycles of the
    longest one and their limit, where blocks differ. ``room``: for so many at once."""
    alike = (0.0, LATENCY)
    if isinstance(plan, TilePlan):
        rows = spread.blocks(plan.rows)
        tiles = rows * -(-plan.product.columns // plan.columns)
        own, in_memory, parts = own_share(plan, spread), rows == spread.used, 1
        part = whole = plan
        if plan.divides_inputs:
            parts = max(facts.blocks // max(tiles, 1), 1)
            part, whole = _divided(plan, parts)
        cycles = tile_cycles(part, gpu, facts.issued, own_share=own, from_memory=in_memory)
        return tiles * parts, cycles, tile_traffic(whole, gpu, spread, tokens, room), alike
    if isinstance(plan, WarpPlan):
        of_pair = -(-plan.product.columns // (plan.warps * plan.columns))
        cycles = warp_cycles(plan, gpu, facts.issued)
        return -(-spread.pairs // plan.rows) * of_pair, cycles, warp_traffic(plan, gpu, spread, tokens), alike
    if isinstance(plan, AttentionPlan):
        return _attention_work(plan, gpu, facts.issued, facts.attention)
    traffic = tensor_traffic(gpu, facts.bytes_read, facts.bytes_written)
    read, moved = facts.bytes_read / facts.blocks, traffic.l2 / facts.blocks
    if isinstance(plan, WalkPlan):
        return facts.blocks, walk_cycles(plan, gpu, facts.steps, moved), traffic, alike
    cycles = stream_cycles(plan, gpu, facts.threads, moved, read, from_memory=traffic.memory > 0)
    return facts.blocks, cycles, traffic, alike


def _divided(plan: TilePlan, parts: int) -> tuple[TilePlan, TilePlan]:
    """What a block does of a product whose inputs are in so many parts, and what all do, which write sums of each."""
    product = plan.product
    k_tiles = -(-product.inner // plan.inputs)
    part = dataclasses.replace(product, inner=-(-k_tiles // parts) * plan.inputs)
    whole = dataclasses.replace(product, out_bytes=product.out_bytes * parts)
    return dataclasses.replace(plan, product=part), dataclasses.replace(plan, product=whole)


def _attention_work(
    plan: AttentionPlan, gpu: Gpu, issued: Issued | None, sizes: AttentionSizes | None
) -> tuple[int, BlockCycles, Traffic, tuple[float, str]]:
    assert sizes is not None, "an attention has sizes"
    walk = walk_of(plan, sizes)
    traffic = attention_traffic(plan, gpu, sizes, walk)
    from_memory = traffic.memory > 0
    cycles, longest = (
        attention_cycles(plan, gpu, issued, tiles, from_memory=from_memory)
        for tiles in (walk.tiles / max(walk.blocks, 1), walk.longest)
    )
    return walk.blocks, cycles, traffic, longest.together(1)


def _cycles_of_waves(gpu: Gpu, held: Occupancy, blocks: int, cycles: BlockCycles) -> tuple[float, str]:
    """Full waves, and what is left, spread over the multiprocessors; and what limits most of it."""
    full, left = divmod(blocks, gpu.multiprocessors * held.blocks)
    of_wave, limit = cycles.together(held.blocks)
    if not left:
        return full * of_wave, limit
    of_last, limit_of_last = cycles.together(-(-left // gpu.multiprocessors))
    return full * of_wave + of_last, limit if full else limit_of_last


def _least(
    plan: LaunchPlan, gpu: Gpu, facts: LaunchFacts, spread: Spread, tokens: int, traffic: Traffic
) -> tuple[float, float]:
    """Operations, and the seconds that they and the bytes take at the published peaks."""
    if isinstance(plan, AttentionPlan):
        assert facts.attention is not None, "an attention has sizes"
        operations = attention_operations(plan, facts.attention)
        moved = attention_least_bytes(plan, facts.attention)
        return operations, max(operations / gpu.peak(plan.dtype, plan.best_unit), moved / gpu.memory_peak)
    if isinstance(plan, (StreamPlan, WalkPlan)):
        return 0.0, traffic.memory / gpu.memory_peak
    product = plan.product
    operations = 2.0 * spread.pairs * product.columns * product.inner
    unit = plan.unit if isinstance(plan, TilePlan) else "mma"
    least = max(operations / gpu.peak(product.dtype, unit), least_bytes(product, spread, tokens) / gpu.memory_peak)
    return operations, least
