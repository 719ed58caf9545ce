"""Estimates of the crossovers: the numbers of tokens from which the next way to compute a layer is faster.

``moec tune`` replaces them by measurements. T tokens with k of E experts each are T * k pairs. If all experts are
chosen equally often, a token misses a given expert with probability 1 - k / E. So the expected number of experts with
at least one pair is D(T) = E * (1 - (1 - k / E) ** T), and an expert has r = T * k / E pairs on average.

**Pair by pair or in blocks** (:func:`few_tokens`). With few rows, the time is that of reading weights. Pair by pair,
T * k matrices are read; in blocks, D(T) of them, but dispatch takes one more launch. Pairs win while

    (T * k - D(T)) * bytes of an expert <= bytes that memory delivers while dispatch runs

Without tensor cores arithmetic is the limit, because blocks compute their padding, too. There the crossover is
:data:`FEW_TOKENS`.

For one token k = D(1), so pairs always win; a second token shares k * k / E experts with it on average.

**The height of blocks** (:func:`block_heights`). An expert with r rows has about r / h + 1/2 blocks of h rows, since
its last block is half full on average. Each block reads the matrix: the first one from memory, the others from the
second-level cache, which delivers about twice as much. While an expert has at most two blocks, memory is therefore the
limit, and lower blocks save padding at no cost:

    r / h + 1/2 <= 2, which is r <= 1.5 * h

Up to there arithmetic is not the limit either. With 16-bit weights, 2 * h computed rows make 2 * h operations per byte,
at most 128 for blocks of 64 rows; tensor cores do 150 (A100) to 300 (H100) in the time that memory takes for a byte.

A matrix that does not fit into the cache (Mixtral's have 235 MB) is read from memory for each block. There an expert
should have one block only, even if it is chosen more often than others: r <= 3/4 * h. Two blocks take twice the time,
and a higher block that is not full reads no more.

**Dispatch in one launch or three** (:func:`one_launch_tokens`). One block of threads handles 1024 pairs per step, each
pair twice, and a step takes about 0.35 us. Three launches cost two more launches, about 6 us, and three such steps
while chunks are small (:mod:`~moec.targets.gpu.kernels.dispatch_many`).
"""

from __future__ import annotations

from collections.abc import Sequence

from moec.targets.base import SizeRange
from moec.targets.cuda.estimates.gpus import GPUS

FEW_TOKENS = 16
"""The highest estimate for pair by pair. In small layers launches dominate the time, so more would gain nothing."""
_DISPATCH_BYTES = 12_500_000
"""Bytes that memory delivers while dispatch runs (about 5 us) at 2.5 TB/s, between an A100 (2.0) and an H100 (3.35)."""
_MOST_FILLED = 1.5
"""An expert's average rows in heights of a block, up to which blocks are not made higher."""
_MOST_FILLED_FROM_MEMORY = 0.75
"""The same limit if every block reads its matrix from memory."""
_CACHED_BYTES = min(gpu.l2_bytes for gpu in GPUS.values()) // 2
"""The largest matrix that the second-level cache still holds for a second block: half of the smallest cache."""
_ONE_LAUNCH_PAIRS = 8192
_USUAL_SLOTS = 8
"""Experts per token, assumed if their number is dynamic."""


def few_tokens(experts: int, slots: int | None, expert_bytes: float) -> int:
    """The largest number of tokens that is computed pair by pair. ``expert_bytes``: of all matrices of an expert;
    ``slots``: experts per token, None if dynamic."""
    if slots is None:
        return FEW_TOKENS
    tokens = 1
    while tokens < FEW_TOKENS and _reads_again(experts, slots, tokens + 1) * expert_bytes <= _DISPATCH_BYTES:
        tokens += 1
    return tokens


def _reads_again(experts: int, slots: int, tokens: int) -> float:
    """The expected number of redundant reads of an expert if every pair reads its own: T * k - D(T)."""
    return tokens * slots - experts * (1 - max(1 - slots / experts, 0) ** tokens)


def block_heights(
    experts: int, slots: int | None, heights: Sequence[int], least: int, matrix_bytes: float = 0
) -> list[tuple[int, SizeRange]]:
    """The best heights of blocks, lowest first, each with the numbers of tokens that it is best for; together these are
    all from ``least`` on. ``matrix_bytes``: of the largest matrix of an expert."""
    if slots is None or len(heights) == 1:
        return [(heights[-1], SizeRange(least))]
    best = []
    filled = _MOST_FILLED if matrix_bytes <= _CACHED_BYTES else _MOST_FILLED_FROM_MEMORY
    for rows in heights[:-1]:
        most = int(filled * rows * experts / slots)
        if most >= least:
            best.append((rows, SizeRange(least, most)))
            least = most + 1
    return [*best, (heights[-1], SizeRange(least))]


def one_launch_tokens(slots: int | None) -> int:
    """The largest number of tokens whose pairs are dispatched by one launch of one block of threads."""
    return _ONE_LAUNCH_PAIRS // (slots or _USUAL_SLOTS)
