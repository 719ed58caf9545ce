"""The predicted time of one launch: the time of memory or the time of the multiprocessors, whichever is longer.

Blocks run in waves of as many blocks as the multiprocessors hold at once. A wave takes as long as its blocks do
(:mod:`.cycles`), even the last one, which may be nearly empty. Kernels of a captured graph run one after another; a
kernel that is launched early still waits for its predecessor, but the time of its launch is hidden.

The model leaves out changing clocks, bank conflicts, atomics, and anything that no manual documents.
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
from moec.targets.cuda.launch_model.plans import (
    AttentionPlan,
    LaunchPlan,
    MemoryBoundPlan,
    TilePlan,
    WalkPlan,
    WarpPlan,
)
from moec.targets.cuda.launch_model.rows import RowSpread
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
    """The facts of one launch at some number of tokens. ``bytes_read`` and ``bytes_written``: of the tensors that a
    :class:`MemoryBoundPlan` names, or of all of them; ``steps``: of a :class:`WalkPlan`; ``attention``: the sizes of an
    :class:`AttentionPlan`; ``overlaps``: whether it is launched early and its predecessor allows that."""

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
    """The prediction for one launch.

    - ``blocks``: blocks that have work; ``waves``: of these; ``tail``: the share of the waves' room that they fill.
    - ``operations``: necessary ones, without padding.
    - ``seconds``: from the end of the preceding kernel to the end of this one; ``limit``: the unit that limits it.
    - ``roofline``: the least time at the published peaks as a share of ``seconds``.
    """

    occupancy: Occupancy
    blocks: int
    waves: int
    tail: float
    traffic: Traffic
    operations: float
    seconds: float
    limit: str
    roofline: float


def predict(plan: LaunchPlan, gpu: Gpu, facts: LaunchFacts, spread: RowSpread, tokens: int) -> Prediction:
    """Predict a launch, of which at least one block has to fit on a multiprocessor. ``spread``: how the pairs of
    ``tokens`` are spread over the experts of the kernel."""
    held = occupancy(gpu, facts.threads, facts.registers, facts.shared_bytes)
    room = gpu.multiprocessors * held.blocks
    blocks, cycles, traffic, least_taken = _work(plan, gpu, facts, spread, tokens, room)
    waves = max(-(-blocks // room), 1)
    taken, unit = max(_cycles_of_waves(gpu, held, blocks, cycles), least_taken)
    idle = 0 if isinstance(plan, TilePlan) and plan.persistent else max(facts.blocks - blocks, 0)
    taken += idle / room * gpu.l2_cycles  # each idle block looks up whether it has work, and ends
    busy, moving = taken / gpu.clock, traffic.memory / gpu.memory_reached
    if moving:
        moving += gpu.memory_cycles / gpu.clock  # the latency of the first bytes
    seconds, limit = max((busy, unit), (moving, MEMORY))
    seconds += EARLY_TRIPS * gpu.l2_cycles / gpu.clock if facts.overlaps else LAUNCH_SECONDS
    operations, least = _least(plan, gpu, facts, spread, tokens, traffic)
    return Prediction(
        held, blocks, waves, blocks / (waves * room), traffic, operations, seconds, limit, least / seconds
    )


def _work(
    plan: LaunchPlan, gpu: Gpu, facts: LaunchFacts, spread: RowSpread, tokens: int, room: int
) -> tuple[int, BlockCycles, Traffic, tuple[float, str]]:
    """The number of blocks that have work (for persistent blocks, the number of tiles), the cycles of one block, the
    traffic of all, and the cycles and limit of the longest block if blocks differ. ``room``: the number of blocks that
    the GPU holds at once."""
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
    """The plan of one block and the plan of all blocks, for a product whose inputs are divided into ``parts``. All
    blocks together write the sums of each part."""
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
    """The cycles of all waves and the unit that limits most of them. Blocks of the last wave are spread evenly over the
    multiprocessors."""
    full, left = divmod(blocks, gpu.multiprocessors * held.blocks)
    of_wave, limit = cycles.together(held.blocks)
    if not left:
        return full * of_wave, limit
    of_last, limit_of_last = cycles.together(-(-left // gpu.multiprocessors))
    return full * of_wave + of_last, limit if full else limit_of_last


def _least(
    plan: LaunchPlan, gpu: Gpu, facts: LaunchFacts, spread: RowSpread, tokens: int, traffic: Traffic
) -> tuple[float, float]:
    """The necessary operations, and the least time in seconds of these and of the bytes at the published peaks."""
    if isinstance(plan, AttentionPlan):
        assert facts.attention is not None, "an attention has sizes"
        operations = attention_operations(plan, facts.attention)
        moved = attention_least_bytes(plan, facts.attention)
        return operations, max(operations / gpu.peak(plan.dtype, plan.best_unit), moved / gpu.memory_peak)
    if isinstance(plan, (MemoryBoundPlan, WalkPlan)):
        return 0.0, traffic.memory / gpu.memory_peak
    product = plan.product
    operations = 2.0 * spread.pairs * product.columns * product.inner
    unit = plan.unit if isinstance(plan, TilePlan) else "mma"
    least = max(operations / gpu.peak(product.dtype, unit), least_bytes(product, spread, tokens) / gpu.memory_peak)
    return operations, least
