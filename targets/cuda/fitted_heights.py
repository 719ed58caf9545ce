"""Crossovers between heights of blocks, corrected where the launch model predicts that the estimates lose time.

:mod:`.estimates` does not know the GPU, but the advantage of a higher tile depends on it. A multiprocessor of an RTX
4090 holds one block of 128 rows, or two of 64 rows, of which one computes while the other waits; that of an A100 holds
two or three.

The times of both products are predicted with every height at a grid of numbers of tokens. The prediction assumes that
each token draws its experts at random, since evenly spread rows would fill blocks exactly or miss that by one row. The
chosen bounds are those that lose the least time in total. A time within 5% or 5 us of the best counts as no loss. Of
equally good bounds, those nearest to the estimates are chosen, so estimates that lose nothing stay. All of this is
predicted; ``moec tune`` measures.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

from moec.targets.base import SizeRange
from moec.targets.cuda.architectures import WARP
from moec.targets.cuda.launch_model.gpus import GPU_OF, GPUS, Gpu
from moec.targets.cuda.launch_model.plans import TilePlan
from moec.targets.cuda.launch_model.predict import LaunchFacts, predict
from moec.targets.cuda.launch_model.rows import DrawnSpread

_NO_LOSS, _NO_LOSS_SECONDS = 1.05, 5e-6
_STEPS = 4
"""Points of the grid between a number of tokens and twice that number."""
_MOST_BLOCKS = 16
"""The largest number of blocks of an expert, at the greatest height, that the grid covers. Beyond it, half a block of
padding per expert no longer matters."""

Heights = tuple[tuple[int, SizeRange], ...]
"""Heights of blocks, lowest first, each with the numbers of tokens for which it is used."""


@functools.lru_cache(maxsize=256)  # most layers of a model are alike
def fitted_heights(
    estimates: Heights, experts: int, slots: int | None, plans: tuple[tuple[TilePlan, ...], ...], architecture: str
) -> Heights:
    """``estimates`` with the bounds that lose the least predicted time on the GPU of the architecture.

    ``plans``: for each height, the plans of all products. The estimates are returned unchanged if the GPU's figures are
    not known, or if matrices are decoded or have scales: the instructions for that can be counted only in machine code.
    """
    products = [plan.product for of_all in plans for plan in of_all]
    takes_instructions = any(product.weight_bits != 8 * product.row_bytes for product in products)
    if architecture not in GPU_OF or slots is None or len(estimates) == 1 or takes_instructions:
        return estimates
    gpu, least = GPUS[GPU_OF[architecture]], max(estimates[0][1].least, 1)
    heights, begins = [rows for rows, _ in estimates], [tokens.least for _, tokens in estimates[1:]]
    grid = sorted({*_numbers(least, _MOST_BLOCKS * max(heights) * experts // slots), *begins})
    losses = _losses([[_seconds(of_all, gpu, experts, slots, tokens) for tokens in grid] for of_all in plans])

    def lost(bounds: Sequence[int]) -> float:
        ends = [0, *bounds, len(grid)]
        return sum(sum(losses[way][first:end]) for way, (first, end) in enumerate(itertools.pairwise(ends)))

    def away(bounds: Sequence[int]) -> float:
        pairs = zip(bounds, begins, strict=True)
        return sum(abs(math.log(grid[min(at, len(grid) - 1)] / begin)) for at, begin in pairs)

    if not lost([grid.index(begin) for begin in begins]):
        return estimates
    places = itertools.combinations_with_replacement(range(len(grid) + 1), len(begins))
    best = min(places, key=lambda bounds: (round(lost(bounds), 6), away(bounds)))
    starts = [estimates[0][1].least, *(grid[at] if at < len(grid) else grid[-1] + 1 for at in best)]
    lower = zip(heights[:-1], itertools.pairwise(starts), strict=True)
    fitted = [(rows, SizeRange(first, end - 1)) for rows, (first, end) in lower if first < end]
    return (*fitted, (heights[-1], SizeRange(starts[-1])))


def _numbers(least: int, most: int) -> list[int]:
    """The grid: numbers of tokens in equal ratios from ``least`` to ``most`` or slightly beyond."""
    count = max(math.ceil(_STEPS * math.log2(max(most, least) / least)), 1)
    return [round(least * 2 ** (step / _STEPS)) for step in range(count + 1)]


def _losses(seconds: Sequence[Sequence[float]]) -> list[list[float]]:
    """The loss of each height at each number of tokens, relative to the best height there; see :func:`_loss`."""
    best = [min(of_all) for of_all in zip(*seconds, strict=True)]
    return [[_loss(time, least) for time, least in zip(way, best, strict=True)] for way in seconds]


def _loss(seconds: float, least: float) -> float:
    """The share of ``least`` by which ``seconds`` exceeds the tolerance; 0 within the tolerance."""
    return max(seconds / least - _NO_LOSS, 0.0) if seconds - least > _NO_LOSS_SECONDS else 0.0


def _seconds(plans: Sequence[TilePlan], gpu: Gpu, experts: int, slots: int, tokens: int) -> float:
    """The predicted time of all products. Registers are not known before compilation; they are assumed not to limit
    occupancy, for which tiles are designed."""
    total = 0.0
    for plan in plans:
        own = plan.product.experts
        spread = DrawnSpread(max(tokens * slots * own // experts, 1), own, tokens)
        stage_bytes = (plan.rows + plan.columns) * plan.inputs * plan.product.row_bytes
        facts = LaunchFacts(0, 4 * WARP, 1, plan.stages * stage_bytes)
        total += predict(plan, gpu, facts, spread, tokens).seconds
    return total
