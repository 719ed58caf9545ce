"""What a side of a decision is, and what it takes to have seen it: the conditions of :mod:`moec.ir.decisions`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from moec.ir.intervals import Interval, may_hold

Array = np.ndarray[Any, Any]
Given = Sequence[Array | None]
Evidence = Any
"""What a condition keeps of the runs so far; None before the first."""
MOST_GROUPS = 1 << 16
OUTPUT = -1
"""The place of a node's first output among its operands."""

_RELATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "<": np.less,
    ">": np.greater,
    "<=": np.less_equal,
    ">=": np.greater_equal,
    "==": np.equal,
    "!=": np.not_equal,
}


class Condition(Protocol):
    """One side of a decision."""

    def merge(self, evidence: Evidence, inputs: Given, outputs: Given) -> Evidence:
        """What is known after another run."""
        ...

    def seen(self, evidence: Evidence, operands: Mapping[int, Interval]) -> bool:
        """Whether the runs took this side, or no input within the operands' intervals takes it."""
        ...

    def __str__(self) -> str: ...


@dataclasses.dataclass(frozen=True)
class Compares(Condition):
    """``left relation right`` holds somewhere. Operands are places of inputs, :data:`OUTPUT`, or a number on the right.

    Bounds that hold several numbers (one limit per expert) have to be reached one by one.
    """

    left: int
    relation: str
    right: int | float
    number: bool = False

    def merge(self, evidence: Evidence, inputs: Given, outputs: Given) -> Evidence:
        left, right = self._operands(inputs, outputs)
        if left is None or right is None:
            return evidence
        with np.errstate(all="ignore"):
            taken = np.asarray(_RELATIONS[self.relation](left, right))
        groups = _over_bounds(taken, np.asarray(right))
        return groups if evidence is None or evidence.shape != groups.shape else evidence | groups

    def seen(self, evidence: Evidence, operands: Mapping[int, Interval]) -> bool:
        left = operands.get(self.left, Interval())
        right = Interval(float(self.right), float(self.right)) if self.number else operands.get(int(self.right))
        if right is None:  # an optional bound that is absent
            return True
        possible = may_hold(self.relation, left, right)
        if evidence is None:
            return not possible.any()
        return bool(np.all(evidence | ~(possible if possible.shape == evidence.shape else possible.any())))

    def _operands(self, inputs: Given, outputs: Given) -> tuple[Any, Any]:
        def at(place: int) -> Any:
            return outputs[0] if place == OUTPUT else inputs[place] if place < len(inputs) else None

        return at(self.left), self.right if self.number else at(int(self.right))

    def __str__(self) -> str:
        def named(place: int) -> str:
            return "its result" if place == OUTPUT else f"input {place}"

        return f"{named(self.left)} {self.relation} {self.right if self.number else named(int(self.right))}"


def _over_bounds(taken: Array, right: Array) -> Array:
    """Whether each entry of ``right`` was met, where these are few; otherwise whether any was."""
    if right.size <= 1 or right.size > MOST_GROUPS or right.shape == taken.shape:
        return np.asarray(taken.any())
    shape = (1,) * (taken.ndim - right.ndim) + right.shape
    repeated = tuple(axis for axis, size in enumerate(shape) if size == 1)
    return taken.any(axis=repeated, keepdims=True).reshape(right.shape)


@dataclasses.dataclass(frozen=True)
class Varies(Condition):
    """A selection, or a rounding to steps, has more than one outcome: ``outcome`` reads it off the operands."""

    outcome: Callable[[Given, Given], Array | None]
    what: str

    def merge(self, evidence: Evidence, inputs: Given, outputs: Given) -> Evidence:
        found = self.outcome(inputs, outputs)
        if found is None or not found.size:  # there was nothing to choose from
            return evidence
        low, high = float(found.min()), float(found.max())
        return (low, high) if evidence is None else (min(low, evidence[0]), max(high, evidence[1]))

    def seen(self, evidence: Evidence, operands: Mapping[int, Interval]) -> bool:
        if OUTPUT in operands and np.all(operands[OUTPUT].low == operands[OUTPUT].high):
            return True
        return evidence is not None and evidence[0] != evidence[1]

    def __str__(self) -> str:
        return f"another {self.what}"


@dataclasses.dataclass(frozen=True)
class Rounds(Condition):
    """Numbers that are not whole are never rounded: every step of a rounding is a decision, and there are too many."""

    def merge(self, evidence: Evidence, inputs: Given, outputs: Given) -> Evidence:
        data = inputs[0]
        assert data is not None
        finite = data[np.isfinite(data)]
        return bool(evidence) or bool(np.any(finite != np.rint(finite)))

    def seen(self, evidence: Evidence, operands: Mapping[int, Interval]) -> bool:
        low, high = operands[OUTPUT].whole
        return low == high or evidence is False

    def __str__(self) -> str:
        return "it rounds to whole numbers"


@dataclasses.dataclass(frozen=True)
class Wraps(Condition):
    """An integer is beyond what the type holds that it is cast to, and becomes another."""

    low: float
    high: float

    def merge(self, evidence: Evidence, inputs: Given, outputs: Given) -> Evidence:
        data = inputs[0]
        assert data is not None
        return bool(evidence) or bool(np.any((data < self.low) | (data > self.high)))

    def seen(self, evidence: Evidence, operands: Mapping[int, Interval]) -> bool:
        low, high = operands.get(0, Interval()).whole
        return bool(evidence) or (self.low <= low and high <= self.high)

    def __str__(self) -> str:
        return f"input 0 lies outside of {self.low:g} to {self.high:g}"


@dataclasses.dataclass(frozen=True, eq=False)
class Takes(Condition):
    """A result that can be only a few numbers, in order, is each of them somewhere."""

    numbers: Array

    def merge(self, evidence: Evidence, inputs: Given, outputs: Given) -> Evidence:
        assert outputs[0] is not None
        taken = np.isin(self.numbers, outputs[0])
        return taken if evidence is None else evidence | taken

    def seen(self, evidence: Evidence, operands: Mapping[int, Interval]) -> bool:
        return self.numbers.size <= 1 or (evidence is not None and bool(np.all(evidence)))

    def __str__(self) -> str:
        return f"it is each of the {self.numbers.size} numbers that it can be"


@dataclasses.dataclass(frozen=True)
class Never(Condition):
    """Something that no run can show, for want of knowledge of the operator."""

    what: str = "what it decides is not known"

    def merge(self, evidence: Evidence, inputs: Given, outputs: Given) -> Evidence:
        return evidence

    def seen(self, evidence: Evidence, operands: Mapping[int, Interval]) -> bool:
        return False

    def __str__(self) -> str:
        return self.what
