"""How tokens are spread over experts, for predictions: as evenly as possible (``balanced``).

Pairs of a token and one of its experts go to the experts in turn. With fewer pairs than experts each pair has its own:
no spread reads more weights, and with many pairs none makes less padding.
"""

from __future__ import annotations

import dataclasses


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
