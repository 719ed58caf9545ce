"""Records of the trials of a check and of the decisions that they saw, for people."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable

import onnx_ir as ir

from moec.common.names import node_name, operator_name
from moec.ir.watch import Unseen, Watch, WatchedSide
from moec.passes.framework.evidence import DecisionRecord, SideRecord, TrialRecord, cut, recorded


@dataclasses.dataclass
class TrialLog:
    """The trials of a check by name, in order."""

    _trials: dict[str, TrialRecord] = dataclasses.field(default_factory=dict)
    _worst: dict[str, float] = dataclasses.field(default_factory=dict)

    def add(self, name: str, tokens: int, result: float | str, tolerance: float) -> None:
        """Add a trial with its difference, or the reason why the original failed."""
        last = self._trials.get(name, TrialRecord(name, 0, 0, None, tolerance))
        failure = cut(result) if isinstance(result, str) else ""
        if not failure:
            assert not isinstance(result, str)
            self._worst[name] = max(result, self._worst.get(name, 0.0))
        worst = self._worst.get(name, math.inf)
        self._trials[name] = TrialRecord(
            name, last.runs + 1, max(last.tokens, tokens), recorded(worst), tolerance, last.failure or failure
        )

    def records(self) -> tuple[TrialRecord, ...]:
        return tuple(self._trials.values())


def decision_records(watch: Watch, failing: Collection[Unseen], open_sides: Iterable[Unseen]) -> list[DecisionRecord]:
    """The decisions under a watch. ``failing``: sides that were taken only where the original fails. ``open_sides``:
    further ones that no trial can show."""
    sides: dict[ir.Node, list[SideRecord]] = {}
    for side in watch.watched():
        sides.setdefault(side.node, []).append(_side(side, failing))
    for side in open_sides:
        sides.setdefault(side.node, []).append(SideRecord(cut(str(side.condition)), "unseen"))
    return [
        DecisionRecord(cut(node_name(node)), operator_name(node), tuple(dict.fromkeys(records)))
        for node, records in sides.items()
    ]


def _side(side: WatchedSide, failing: Collection[Unseen]) -> SideRecord:
    condition = cut(str(side.condition))
    if side.run:
        return SideRecord(condition, "trial", side.run)
    if side.excluded:
        return SideRecord(condition, "excluded", side.excluded)
    if Unseen(side.node, side.condition) in failing:
        return SideRecord(condition, "original fails")
    return SideRecord(condition, "unseen")
