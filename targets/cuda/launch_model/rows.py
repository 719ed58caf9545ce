"""How tokens are spread over experts, for predictions: as evenly as possible (``balanced``), or as if drawn.

Pairs of a token and one of its experts go to the experts in turn. With fewer pairs than experts each pair has its own:
no spread reads more weights, and with many pairs none makes less padding.
"""

from __future__ import annotations

import dataclasses
import functools
import math


@dataclasses.dataclass(frozen=True)
class Spread:
    """``pairs`` over ``experts``."""

    pairs: int
    experts: int

    @property
    def used(self) -> int:
        """Experts that have pairs."""
        return min(self.pairs, self.experts)

    def neighbours(self, rows: int) -> float:
        """The share of blocks whose neighbour is of the same expert, where blocks are taken two by two: each expert
        with an odd number of blocks leaves one, and of those with an even number half begin with one that is left."""
        blocks = self.blocks(rows)
        return 1 - self.used / blocks if blocks else 0.0

    def blocks(self, rows: int) -> int:
        """Blocks of so many rows, for each expert its own."""
        each, more = divmod(self.pairs, self.experts)
        return more * -(-(each + 1) // rows) + (self.experts - more) * -(-each // rows)


@dataclasses.dataclass(frozen=True)
class DrawnSpread(Spread):
    """What is expected where each of ``tokens`` draws its experts, all equally often: the rows of an expert are
    distributed binomially."""

    tokens: int

    @property
    def used(self) -> int:
        return max(round(self.experts * (1 - (1 - self._share) ** self.tokens)), 1)

    def blocks(self, rows: int) -> int:
        return max(round(self.experts * _expected_blocks(self.tokens, self._share, rows)), 1)

    @property
    def _share(self) -> float:
        """Of the tokens, that of an expert."""
        return min(self.pairs / self.experts / self.tokens, 1.0)


_DEVIATIONS = 8
"""From the mean, beyond which next to no expert is."""


@functools.lru_cache(maxsize=4096)
def _expected_blocks(tokens: int, share: float, rows: int) -> float:
    """Of an expert that each token chooses with this probability."""
    mean = tokens * share
    if share in (0, 1):
        return -(-mean // rows)
    away = _DEVIATIONS * math.sqrt(mean) + _DEVIATIONS
    found = 0.0
    for count in range(max(int(mean - away), 1), min(int(mean + away), tokens) + 1):
        ways = math.lgamma(tokens + 1) - math.lgamma(count + 1) - math.lgamma(tokens - count + 1)
        chance = math.exp(ways + count * math.log(share) + (tokens - count) * math.log1p(-share))
        found += chance * -(-count // rows)
    return found
