"""The spread of tokens over experts that predictions assume: as evenly as possible (``balanced``), or drawn at random.

In the even spread, the pairs of a token and an expert go to the experts in turn. With fewer pairs than experts each
pair has its own expert: no other spread reads more weights. With many pairs no other spread has less padding.
"""

from __future__ import annotations

import dataclasses
import functools
import math


@dataclasses.dataclass(frozen=True)
class RowSpread:
    """The even spread of ``pairs`` over ``experts``."""

    pairs: int
    experts: int

    @property
    def used(self) -> int:
        """Experts that have pairs."""
        return min(self.pairs, self.experts)

    def neighbours(self, rows: int) -> float:
        """The share of blocks whose partner has the same expert, when consecutive blocks form pairs. An expert with an
        odd number of blocks has one block without such a partner; of the experts with an even number, half start at the
        second block of a pair and have two."""
        blocks = self.blocks(rows)
        return 1 - self.used / blocks if blocks else 0.0

    def blocks(self, rows: int) -> int:
        """The number of blocks of ``rows`` rows, each with rows of one expert."""
        each, more = divmod(self.pairs, self.experts)
        return more * -(-(each + 1) // rows) + (self.experts - more) * -(-each // rows)


@dataclasses.dataclass(frozen=True)
class DrawnSpread(RowSpread):
    """The expected spread if each of ``tokens`` draws its experts at random, all with the same probability. The rows of
    an expert are then binomially distributed."""

    tokens: int

    @property
    def used(self) -> int:
        return max(round(self.experts * (1 - (1 - self._share) ** self.tokens)), 1)

    def blocks(self, rows: int) -> int:
        return max(round(self.experts * _expected_blocks(self.tokens, self._share, rows)), 1)

    @property
    def _share(self) -> float:
        """The probability that a token has a given expert."""
        return min(self.pairs / self.experts / self.tokens, 1.0)


_DEVIATIONS = 8
"""Standard deviations from the mean that are summed; almost no expert is beyond."""


@functools.lru_cache(maxsize=4096)
def _expected_blocks(tokens: int, share: float, rows: int) -> float:
    """The expected number of blocks of an expert that each token chooses with probability ``share``."""
    mean = tokens * share
    if share in (0, 1):
        return -(-mean // rows)
    away = _DEVIATIONS * math.sqrt(mean) + _DEVIATIONS
    expected = 0.0
    for count in range(max(int(mean - away), 1), min(int(mean + away), tokens) + 1):
        ways = math.lgamma(tokens + 1) - math.lgamma(count + 1) - math.lgamma(tokens - count + 1)
        chance = math.exp(ways + count * math.log(share) + (tokens - count) * math.log1p(-share))
        expected += chance * -(-count // rows)
    return expected
