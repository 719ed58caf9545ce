"""Tokens that draw their experts at random: the experts that a layer needs, and the blocks that their rows fill.

Every expert is drawn with the same probability k / E, independently by each of T tokens. The rows of an expert are so
binomially distributed. An even spread would read more experts where tokens are few, and pad less where they are many.
"""

from __future__ import annotations

import dataclasses
import functools
import math

_DEVIATIONS = 8
"""Standard deviations around the mean that are summed; the probability of more is below 1e-12."""


@dataclasses.dataclass(frozen=True)
class Draws:
    """``tokens`` tokens that draw ``slots`` of ``experts`` experts each."""

    tokens: int
    slots: int
    experts: int

    @property
    def pairs(self) -> int:
        return self.tokens * self.slots

    @property
    def used(self) -> float:
        """The expected number of experts that at least one token draws."""
        return self.experts * (1 - (1 - self._share) ** self.tokens)

    def blocks(self, rows: int) -> float:
        """The expected number of blocks of ``rows`` rows, each with rows of one expert."""
        return self.experts * _expected_blocks(self.tokens, self._share, rows)

    @property
    def _share(self) -> float:
        return min(self.slots / self.experts, 1.0)


@functools.lru_cache(maxsize=1024)
def _expected_blocks(tokens: int, share: float, rows: int) -> float:
    """The expected number of blocks of an expert that each token draws with probability ``share``."""
    mean = tokens * share
    if share in (0.0, 1.0):
        return math.ceil(mean / rows)
    away = _DEVIATIONS * math.sqrt(mean) + _DEVIATIONS
    expected = 0.0
    for count in range(max(int(mean - away), 1), min(int(mean + away), tokens) + 1):
        ways = math.lgamma(tokens + 1) - math.lgamma(count + 1) - math.lgamma(tokens - count + 1)
        probability = math.exp(ways + count * math.log(share) + (tokens - count) * math.log1p(-share))
        expected += probability * math.ceil(count / rows)
    return expected
