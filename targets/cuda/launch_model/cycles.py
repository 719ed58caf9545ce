"""The cycles that a block of threads takes on its multiprocessor, by the unit that limits it.

A block alone takes the time of its busiest unit, plus the time in which it waits: for the first k-tiles, and at the
end. Several blocks on a multiprocessor use each other's waits, until the busiest unit is saturated; then each block
takes the time of that unit only (asymptotic bounds of closed queueing networks: Denning and Buzen, 1978).
"""

from __future__ import annotations

import dataclasses

from moec.targets.cuda.architectures import WARP
from moec.targets.cuda.launch_model.gpus import LONE_WARP_CYCLES, SHARED_CYCLES, Gpu
from moec.targets.cuda.launch_model.loops import Issued
from moec.targets.cuda.launch_model.plans import MemoryBoundPlan, TilePlan, WalkPlan, WarpPlan

LATENCY = "latency"


@dataclasses.dataclass(frozen=True)
class BlockCycles:
    """The cycles of one block. ``busy``: by unit, the cycles in which it works for the block; ``waits``: the cycles in
    which no unit does."""

    busy: dict[str, float]
    waits: float

    def together(self, count: int) -> tuple[float, str]:
        """The cycles of ``count`` blocks that begin at once, and the unit (or :data:`LATENCY`) that limits them."""
        unit = max(self.busy, key=lambda name: self.busy[name])
        alone, throughput = self.busy[unit] + self.waits, self.busy[unit] * count
        return (throughput, unit) if throughput >= alone else (alone, LATENCY if self.waits > self.busy[unit] else unit)


def tile_cycles(
    plan: TilePlan, gpu: Gpu, issued: Issued | None, *, own_share: float = 1.0, from_memory: bool
) -> BlockCycles:
    """The cycles of one tile. ``own_share``: the share of the matrix that the block copies itself, while other blocks
    of its cluster copy the rest; ``from_memory``: whether the k-tiles of the matrix are in no cache."""
    product, k_tiles = plan.product, -(-plan.product.inner // plan.inputs)
    matrix_bytes = plan.columns * plan.inputs * product.weight_bits / 8
    k_tile_bytes = plan.rows * plan.inputs * product.row_bytes + matrix_bytes * own_share
    stored = plan.rows * min(plan.columns, product.columns) * product.width / product.columns * product.out_bytes
    rate = gpu.tensor_rate(product.dtype, plan.unit) / gpu.multiprocessors / gpu.clock
    latency = gpu.memory_cycles if from_memory else gpu.l2_cycles
    loads = k_tiles * k_tile_bytes / gpu.l2_bytes_per_cycle
    unit = "tensor cores" if plan.unit != "fma" else "float units"
    busy = {unit: k_tiles * 2 * plan.rows * plan.columns * plan.inputs / rate, "L2": loads}
    end = stored / gpu.l2_bytes_per_cycle
    if issued is not None:
        busy |= {name: k_tiles * cycles for name, cycles in _issuing(issued, gpu, 1).items()}
        busy["copying warps"] = k_tiles * issued.copying * LONE_WARP_CYCLES
        end = max(end, issued.once / gpu.issue_slots)
    # A stage is refilled after it was used, so stages - 1 k-tiles arrive per latency.
    steady = max(max(busy.values()) + _waits_of_k_tiles(plan, k_tiles), k_tiles * latency / max(plan.stages - 1, 1))
    first = 2 * gpu.l2_cycles + latency  # look up rows and expert, then wait for the first k-tile
    if plan.persistent:
        first, end = 0, end if plan.groups == 1 else 0
    return BlockCycles(busy, steady - max(busy.values()) + first + end)


def _waits_of_k_tiles(plan: TilePlan, k_tiles: int) -> float:
    """The waits for all k-tiles if the same warps copy and multiply. At each k-tile they wait for one another, then for
    the first numbers from shared memory, then for the first products; each wait is about a latency of shared memory."""
    return 0.0 if plan.copying_warps else k_tiles * 3 * SHARED_CYCLES


def warp_cycles(plan: WarpPlan, gpu: Gpu, issued: Issued | None) -> BlockCycles:
    """The cycles of one block of warps, each with its own columns of the matrix, which come from memory."""
    product = plan.product
    steps = -(-product.inner // (WARP * plan.inputs))
    columns = plan.warps * plan.columns
    moved = (
        columns * product.inner * product.weight_bits / 8 + plan.warps * plan.rows * product.inner * product.row_bytes
    )
    busy = {"L2": moved / gpu.l2_bytes_per_cycle}
    busy["float units"] = columns * product.inner * plan.rows / gpu.float_lanes
    end = 5 * SHARED_CYCLES  # the sum over all lanes, in five exchanges
    if issued is not None:
        busy |= {name: steps * cycles for name, cycles in _issuing(issued, gpu, plan.warps).items()}
        busy["issue slots"] += plan.warps * issued.once / gpu.issue_slots
    waits = max(steps * gpu.memory_cycles / plan.ahead - max(busy.values()), 0.0)
    return BlockCycles(busy, waits + gpu.l2_cycles + end)


def _issuing(issued: Issued, gpu: Gpu, times: int) -> dict[str, float]:
    """The cycles of ``times`` steps in the units that issue and compute instructions, except tensor cores."""
    return {
        "issue slots": times * issued.per_step / gpu.issue_slots,
        "integer units": times * issued.integers * WARP / gpu.integer_lanes,
        "float units": times * issued.floats * WARP / gpu.float_lanes,
    }


def stream_cycles(
    plan: MemoryBoundPlan, gpu: Gpu, threads: int, moved: float, read: float, *, from_memory: bool
) -> BlockCycles:
    """The cycles of one block that moves ``moved`` bytes, ``read`` of them by loads."""
    latency = gpu.memory_cycles if from_memory else gpu.l2_cycles
    steps = max(read / threads / plan.load_bytes / plan.loads, 1.0)
    return BlockCycles({"L2": moved / gpu.l2_bytes_per_cycle}, gpu.l2_cycles + steps * latency)


def walk_cycles(plan: WalkPlan, gpu: Gpu, steps: int, moved: float) -> BlockCycles:
    """The cycles of one block whose warps each take ``steps`` steps one after another and move ``moved`` bytes."""
    waits = steps * (plan.memory_waits * gpu.l2_cycles + plan.exchanges * SHARED_CYCLES)
    return BlockCycles({"L2": moved / gpu.l2_bytes_per_cycle}, gpu.memory_cycles + waits)
