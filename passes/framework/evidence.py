"""Evidence of raising, for people: the trials of a proposal, the decisions of the original, and what was tried on
regions that were left as they were.

Everything is bounded, because a graph may hold thousands of nodes that decide: decisions whose sides were seen alike
are one record with a count, names are cut, and what exceeds a limit is counted.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Literal

MOST_DECISIONS = 60
"""Largest number of records of decisions of one block; those with a side that no trial took come first."""
MOST_ATTEMPTS = 6
"""Largest number of attempts that are kept of one near miss."""
MOST_MISSES = 100
"""Largest number of near misses whose attempts are kept."""
MOST_CHARACTERS = 200
"""Largest length of a node's name or a reason."""
SMALLEST = 1e-12
"""Differences below this are recorded as this: they are rounding, which depends on the machine."""

Seen = Literal["trial", "excluded", "original fails", "unseen"]


@dataclasses.dataclass(frozen=True)
class TrialRecord:
    """Trials of one name on the block itself or on its ``miniature``. ``tokens``: the largest number in a trial.
    ``difference``: the worst of their rows, relative to the row's largest entry; None if it has no bound, or if the
    original failed on all of them for the reason ``failure``."""

    name: str
    runs: int
    tokens: int
    difference: float | None
    tolerance: float
    failure: str = ""
    miniature: bool = False


@dataclasses.dataclass(frozen=True)
class SideRecord:
    """One side of a decision. ``by``: the trial that took it, or the reason why no input takes it."""

    condition: str
    seen: Seen
    by: str = ""


@dataclasses.dataclass(frozen=True)
class DecisionRecord:
    """Decision of a node. ``others``: further nodes with the same operator whose sides were seen alike."""

    node: str
    operator: str
    sides: tuple[SideRecord, ...]
    others: int = 0

    @property
    def is_open(self) -> bool:
        """Whether a side was not seen."""
        return any(side.seen == "unseen" for side in self.sides)


@dataclasses.dataclass(frozen=True)
class Evidence:
    """Comparison of a proposal with the original. ``difference`` is the worst of all trials, None without bound;
    ``worst_trial`` is empty if it is rounding.
    ``decisions_left_out`` counts records beyond :data:`MOST_DECISIONS`."""

    difference: float | None
    tolerance: float
    worst_trial: str
    trials: tuple[TrialRecord, ...]
    decisions: tuple[DecisionRecord, ...] = ()
    decisions_left_out: int = 0
    assumed: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Attempt:
    """A way in which a block was read, and why it was not taken. ``proposals``: the number of those that were compared
    with the original; ``proposal`` is the nearest, empty if there was none."""

    reading: str
    reason: str
    proposal: str = ""
    proposals: int = 0
    evidence: Evidence | None = None


@dataclasses.dataclass(frozen=True)
class RaisedBlock:
    """A block that was raised. ``reading``: the way in which the proposal was found. ``isomorphic_to``: the block whose
    proposal was taken over, with its evidence; only the weights were compared again."""

    name: str
    reading: str
    proposal: str
    evidence: Evidence
    isomorphic_to: str = ""


def recorded(difference: float) -> float | None:
    """A difference of a record: two digits, at least :data:`SMALLEST`, None for one without bound."""
    return float(f"{max(difference, SMALLEST):.1e}") if math.isfinite(difference) else None


def cut(text: str) -> str:
    """A text of a model in at most :data:`MOST_CHARACTERS`."""
    return text if len(text) <= MOST_CHARACTERS else f"{text[: MOST_CHARACTERS - 1]}…"


def grouped(decisions: Iterable[DecisionRecord]) -> tuple[tuple[DecisionRecord, ...], int]:
    """Join decisions of one operator whose sides were seen alike. Returns at most :data:`MOST_DECISIONS` records, open
    ones first, and the number of others."""
    groups: dict[tuple[str, tuple[SideRecord, ...]], DecisionRecord] = {}
    for decision in decisions:
        key = decision.operator, decision.sides
        first = groups.setdefault(key, decision)
        if first is not decision:
            groups[key] = dataclasses.replace(first, others=first.others + 1)
    ordered = sorted(groups.values(), key=lambda decision: not decision.is_open)
    return tuple(ordered[:MOST_DECISIONS]), max(len(ordered) - MOST_DECISIONS, 0)
