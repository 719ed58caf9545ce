"""Budgets of single steps of the compiler. A step that would exceed its budget takes the plain way, and reports it.

Work is counted, never timed, so that the same model becomes the same artifact on every machine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Budget:
    """Bound of one step's work: ``step`` may take ``limit`` of ``unit``; where it would take more, ``plain_way`` says
    what happens instead."""

    step: str
    limit: int
    unit: str
    plain_way: str

    def allows(self, amount: float) -> bool:
        return amount <= self.limit

    def remark(self, subjects: Sequence[str]) -> str:
        """Write a sentence for the report about all subjects that exceeded the budget."""
        more = f" and {len(subjects) - 1} more" if len(subjects) > 1 else ""
        return f"{self.step} may take {self.limit} {self.unit}, and of {subjects[0]}{more} takes more: {self.plain_way}"


SIZE_OPERATORS = Budget("a size", 16, "operators", "it is computed once, when the program runs")
"""The time of TVM's analyzer grows faster than any power of the number of nested minima, maxima and selections."""

FUSED_LOADS = Budget("an element of a fused kernel", 128, "loads", "it is computed by a kernel of its own")
"""A value that two fused operators read is computed in both: chains of such values double with every step."""

FUSED_REPEATS = Budget(
    "an element of a fused kernel",
    4,
    "nested operators that repeat their operand",
    "it is computed by a kernel of its own",
)
"""TVM's simplifier examines every repetition of an operand several times: five nested Relus take it 0.4 seconds, and
each further one seven times as long."""

PROBED_MIXTURES = Budget(
    "telling experts apart by their weights", 1 << 32, "multiplications", "the block is not probed"
)
"""Experts are distinguished by a least-squares fit, whose cost grows with the cube of their number."""

NESTED_FACTORS = Budget(
    "telling how many experts a token has", 8, "nested factors of their weights", "it may have all of them"
)
"""A factor that several products read is followed once for each way to it: their number doubles with every product."""

FOLLOWED_ZEROS = Budget(
    "telling how many experts a token has",
    64,
    "operators that make what their weights are written into",
    "it may have all of them",
)
"""Each chain of ScatterElements would be followed again from each of its nodes."""

PLACING = Budget("placing a layer's experts", 700_000, "loads and pairs", "the best placement seen so far is taken")
"""Each move of the joint method computes the loads of all ranks, and the pairs of one expert with all others."""
