"""Watching a graph run: the evidence that runs show for its decisions (:mod:`moec.ir.kinds`)."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np
import onnx_ir as ir

from moec.common.names import node_name
from moec.ir.facts import Facts
from moec.ir.intervals import Interval
from moec.ir.kinds import conditions
from moec.ir.sides import OUTPUT, Compares, Condition, Evidence, Given, Live, Rounds

LARGEST = float(np.finfo(np.float32).max)
NO_EFFECT = "its result does not affect y"
"""The reason why the sides of a dismissed node need not be seen."""


@dataclasses.dataclass(frozen=True)
class Unseen:
    """A side of a node's decision that no run has taken and no interval excludes."""

    node: ir.Node
    condition: Condition

    def __str__(self) -> str:
        return f"{self.node.op_type} node {node_name(self.node)!r}: {self.condition}"


@dataclasses.dataclass(frozen=True)
class WatchedSide:
    """A side of a node's decision and the reason why it counts as seen: the ``run`` that completed its evidence, or
    ``excluded`` in words. Both are empty for an unseen side."""

    node: ir.Node
    condition: Condition
    run: str = ""
    excluded: str = ""


class Watch:
    """Notes the sides that are taken while nodes run (:mod:`moec.ir.kinds`). Call it with a node, its inputs and its
    outputs."""

    def __init__(self, nodes: Iterable[ir.Node], facts: Facts) -> None:
        self._intervals = facts.intervals
        self._conditions = {node: sides for node in nodes if (sides := conditions(node, facts))}
        self._evidence: dict[tuple[ir.Node, int], Evidence] = {}
        self._open = {(node, place) for node, sides in self._conditions.items() for place in range(len(sides))}
        self._close()
        self._watched = {*self._open, *self._revocable()}
        self._open_at_first = frozenset(self._open)
        self._runs: dict[tuple[ir.Node, int], str] = {}
        self._dismissed: dict[ir.Node, tuple[Condition, ...]] = {}

    def __call__(self, node: ir.Node, inputs: Given, outputs: Given, live: Live = None) -> None:
        for place, condition in enumerate(self._conditions.get(node, ())):
            if (node, place) in self._watched:
                evidence = condition.merge(self._evidence.get((node, place)), inputs, outputs, live)
                self._evidence[node, place] = evidence

    def fork(self) -> Watch:
        """A watch that starts with the evidence of this one, and keeps its own evidence to itself."""
        other = copy.copy(self)
        other._evidence, other._open, other._watched = dict(self._evidence), set(self._open), set(self._watched)
        return other

    def adopt(self, fork: Watch, run: str = "") -> None:
        """Take over the evidence of a fork of this watch. ``run`` names where it comes from."""
        before = self._open
        self._evidence, self._open = fork._evidence, fork._open
        self._close()
        for key in before - self._open:
            self._runs[key] = run
        self._watched = {*self._open, *self._revocable()}

    def news(self, fork: Watch) -> list[ir.Node]:
        """Nodes with evidence in a fork of this watch that this one lacks, in order."""
        grown = {key[0] for key, evidence in fork._evidence.items() if not _is_same(self._evidence.get(key), evidence)}
        return [node for node in self._conditions if node in grown]

    def unseen(self) -> list[Unseen]:
        """The sides that no run has taken, in the order of the nodes."""
        self._close()
        return [
            Unseen(node, condition)
            for node, sides in self._conditions.items()
            for place, condition in enumerate(sides)
            if (node, place) in self._open
        ]

    def dismiss(self, nodes: Iterable[ir.Node]) -> None:
        """Take all sides of these nodes for seen."""
        for node in nodes:
            if sides := self._conditions.pop(node, ()):
                self._dismissed[node] = sides
        self._open = {key for key in self._open if key[0] in self._conditions}

    def watched(self) -> Iterator[WatchedSide]:
        """All sides, those of dismissed nodes last, each with the reason why it counts as seen."""
        for node, sides in self._conditions.items():
            for place, condition in enumerate(sides):
                if (node, place) in self._open:
                    yield WatchedSide(node, condition)
                elif (node, place) not in self._open_at_first:
                    yield WatchedSide(node, condition, excluded=self._bounds(node, condition))
                elif isinstance(condition, Rounds):
                    yield WatchedSide(node, condition, excluded="all numbers of the runs were whole")
                else:
                    yield WatchedSide(node, condition, run=self._runs.get((node, place), ""))
        for node, sides in self._dismissed.items():
            yield from (WatchedSide(node, condition, excluded=NO_EFFECT) for condition in sides)

    @property
    def sides(self) -> int:
        """The number of sides, the excluded ones included."""
        return sum(map(len, self._conditions.values()))

    def _close(self) -> None:
        self._open = {key for key in (*self._open, *self._revocable()) if not self._seen(*key)}

    def _revocable(self) -> Iterator[tuple[ir.Node, int]]:
        for node, sides in self._conditions.items():
            yield from ((node, place) for place, condition in enumerate(sides) if isinstance(condition, Rounds))

    def _seen(self, node: ir.Node, place: int) -> bool:
        return self._conditions[node][place].seen(self._evidence.get((node, place)), dict(self._operands(node)))

    def _bounds(self, node: ir.Node, condition: Condition) -> str:
        """The intervals of the operands that a condition is about, in words."""
        compared = isinstance(condition, Compares)
        places = {condition.left, *(() if condition.number else (condition.right,))} if compared else None
        operands = [(at, interval) for at, interval in self._operands(node) if places is None or at in places]
        named = (("its result" if at == OUTPUT else f"input {at}", interval) for at, interval in operands)
        if compared and not condition.number and condition.right not in {at for at, _ in operands}:
            return f"it has no input {condition.right}"
        bounded = [f"{name} is {bounds}" for name, interval in named if (bounds := _in_words(interval))]
        return ", ".join(bounded) or "no input takes it"

    def _operands(self, node: ir.Node) -> Iterator[tuple[int, Interval]]:
        for place, value in enumerate(node.inputs):
            if value is not None:
                yield place, self._intervals.get(value, Interval())
        yield OUTPUT, self._intervals.get(node.outputs[0], Interval())


def _in_words(interval: Interval) -> str:
    """The bounds of all entries for people; empty if there are none but the range of float32."""
    low, high = interval.whole
    if low == high:
        return f"{low:g}"
    if low <= -LARGEST and high >= LARGEST:
        return ""
    if low <= -LARGEST:
        return f"{high:g} or less"
    return f"{low:g} or more" if high >= LARGEST else f"{low:g} to {high:g}"


def _is_same(first: Evidence, other: Evidence) -> bool:
    if first is other or first is None or other is None:
        return first is other
    parts = zip(first, other, strict=True) if isinstance(first, list) else [(first, other)]
    return all(np.array_equal(*pair) for pair in parts)
