"""From how many tokens on blocks are higher, where the launch model finds that the estimates lose.

:mod:`.estimates` knows no GPU. How much faster the rows of a higher tile are computed than those of a lower one depends
on it: on an RTX 4090 a multiprocessor holds one block of 128 rows or two of 64, and what one waits for the other fills;
an A100 holds two and three. So for each of some numbers of tokens, both products are predicted with every height, for
experts that tokens draw, since evenly spread rows would fill a number of blocks exactly or miss it by one. The bounds
that lose least are taken. What is within 5% or 5 us of the best loses nothing: of bounds that are as good, those
nearest to the estimates are taken, which are the estimates themselves where these lose nothing. Nothing of it is
measured; ``moec tune`` does that.
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
"""Numbers of tokens that are looked at, from one to twice as many."""
_MOST_BLOCKS = 16
"""Of an expert: beyond so many of the highest, half a block of padding each matters to none."""

Heights = tuple[tuple[int, SizeRange], ...]
"""Heights of blocks, lowest first, and the numbers of tokens for which each is taken."""


@functools.lru_cache(maxsize=256)  # most layers of a model are alike
def fitted_heights(
    estimates: Heights, experts: int, slots: int | None, plans: tuple[tuple[TilePlan, ...], ...], architecture: str
) -> Heights:
    """``estimates`` with other bounds where these lose more on the GPU of the architecture, as predicted; as
    they are where its figures are not known, and where matrices are decoded or have scales, for how many instructions
    that takes is known when machine code is there. ``plans``: for each height, those of all products."""
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
        found = zip(bounds, begins, strict=True)
        return sum(abs(math.log(grid[min(at, len(grid) - 1)] / begin)) for at, begin in found)

    if not lost([grid.index(begin) for begin in begins]):
        return estimates
    places = itertools.combinations_with_replacement(range(len(grid) + 1), len(begins))
    best = min(places, key=lambda bounds: (round(lost(bounds), 6), away(bounds)))
    starts = [estimates[0][1].least, *(grid[at] if at < len(grid) else grid[-1] + 1 for at in best)]
    lower = zip(heights[:-1], itertools.pairwise(starts), strict=True)
    found = [(rows, SizeRange(first, end - 1)) for rows, (first, end) in lower if first < end]
    return (*found, (heights[-1], SizeRange(starts[-1])))


def _numbers(least: int, most: int) -> list[int]:
    """From ``least`` on, to ``most`` or a little beyond."""
    count = max(math.ceil(_STEPS * math.log2(max(most, least) / least)), 1)
    return [round(least * 2 ** (step / _STEPS)) for step in range(count + 1)]


def _losses(seconds: Sequence[Sequence[float]]) -> list[list[float]]:
    """Of each way for each number of tokens: by how much more than what is no loss it takes longer than the best."""
    best = [min(of_all) for of_all in zip(*seconds, strict=True)]
    return [[_loss(one, least) for one, least in zip(way, best, strict=True)] for way in seconds]


def _loss(seconds: float, least: float) -> float:
    return max(seconds / least - _NO_LOSS, 0.0) if seconds - least > _NO_LOSS_SECONDS else 0.0


def _seconds(plans: Sequence[TilePlan], gpu: Gpu, experts: int, slots: int, tokens: int) -> float:
    """Of all products. Registers, which the compiler will give, are taken to be no limit, as tiles are made."""
    found = 0.0
    for plan in plans:
        own = plan.product.experts
        spread = DrawnSpread(max(tokens * slots * own // experts, 1), own, tokens)
        stage_bytes = (plan.rows + plan.columns) * plan.inputs * plan.product.row_bytes
        facts = LaunchFacts(0, 4 * WARP, 1, plan.stages * stage_bytes)
        found += predict(plan, gpu, facts, spread, tokens).seconds
    return found
