"""From how many tokens on the next way to compute a layer is taken, as estimated: ``moec tune`` measures it.

T tokens with k of E experts each are T * k pairs. If experts are chosen equally often, a token leaves one out with
probability 1 - k / E, so that D(T) = E * (1 - (1 - k / E) ** T) experts are expected to have a pair, each of them
r = T * k / E on average.

**Pair by pair or by blocks** (:func:`few_tokens`). Few rows take the time in which weights are read. Pair by pair, that
is T * k matrices; by blocks, D(T) of them, and dispatch is a launch more. Pairs win while

    (T * k - D(T)) * bytes of an expert <= bytes that memory delivers while dispatch runs

Without tensor cores arithmetic binds, for blocks have their padding computed, too: there it is :data:`FEW_TOKENS`.

One token has k = D(1); a second one has k * k / E experts in common with it.

**The height of blocks** (:func:`block_heights`). An expert with r rows has about r / h + 1/2 blocks of h rows, for its
last block is half full on average. Each of them reads the matrix, the first one from memory and the others from the
second-level cache, which delivers about twice as much. So while there are at most two, memory binds and lower blocks
save padding for nothing:

    r / h + 1/2 <= 2, which is r <= 1.5 * h

Up to there arithmetic does not bind either: with 16-bit weights, 2 * h computed rows make 2 * h operations per byte, at
most 128 for blocks of 64 rows, and tensor cores do 150 (A100) to 300 (H100) in the time of a byte.

A matrix that the cache does not hold (Mixtral's have 235 MB) comes from memory for each block. There one block has to
do, also for experts that are chosen more often than others: r <= 3/4 * h. By the launch model two blocks take twice the
time, a higher block that is not filled at most 4% more.

**Dispatch in one launch or three** (:func:`one_launch_tokens`). One block of threads looks at 1024 pairs in a step, at
each pair twice, and a step takes about 0.35 us. Three launches take two launches more, about 6 us, and three such steps
while chunks are small (:mod:`.kernels.dispatch_many`).
"""

from __future__ import annotations

from collections.abc import Sequence

from moec.targets.base import SizeRange

FEW_TOKENS = 16
"""The estimate for pair by pair is no higher: small layers take the time of their launches whatever the way."""
_DISPATCH_BYTES = 12_500_000
"""What memory delivers while dispatch runs, about 5 us: 2.5 TB/s, between an A100 (2.0) and an H100 (3.35)."""
_MOST_FILLED = 1.5
"""Blocks of an expert's average rows, up to which they are not made higher."""
_MOST_FILLED_FROM_MEMORY = 0.75
"""Likewise where every block reads its matrix from memory."""
_CACHED_BYTES = 20 << 20
"""Of a matrix, beyond which no second block finds it in the second-level cache: half of an A100's, the smallest that
counts."""
_ONE_LAUNCH_PAIRS = 8192
_USUAL_SLOTS = 8
"""Experts per token where their number is dynamic."""


def few_tokens(experts: int, slots: int | None, expert_bytes: float) -> int:
    """Up to how many tokens pairs are computed one by one; ``expert_bytes``: all matrices of an expert together."""
    if slots is None:
        return FEW_TOKENS
    tokens = 1
    while tokens < FEW_TOKENS and _reads_again(experts, slots, tokens + 1) * expert_bytes <= _DISPATCH_BYTES:
        tokens += 1
    return tokens


def _reads_again(experts: int, slots: int, tokens: int) -> float:
    """How many experts are read once more than they need to be if every pair reads its own."""
    return tokens * slots - experts * (1 - max(1 - slots / experts, 0) ** tokens)


def block_heights(
    experts: int, slots: int | None, heights: Sequence[int], least: int, matrix_bytes: float = 0
) -> list[tuple[int, SizeRange]]:
    """Which of the heights of blocks, lowest first, is best for which numbers of tokens from ``least`` on.
    ``matrix_bytes``: of the largest matrix of an expert."""
    if slots is None or len(heights) == 1:
        return [(heights[-1], SizeRange(least))]
    found = []
    filled = _MOST_FILLED if matrix_bytes <= _CACHED_BYTES else _MOST_FILLED_FROM_MEMORY
    for rows in heights[:-1]:
        most = int(filled * rows * experts / slots)
        if most >= least:
            found.append((rows, SizeRange(least, most)))
            least = most + 1
    return [*found, (heights[-1], SizeRange(least))]


def one_launch_tokens(slots: int | None) -> int:
    """Up to how many tokens one block of threads dispatches all pairs."""
    return _ONE_LAUNCH_PAIRS // (slots or _USUAL_SLOTS)
