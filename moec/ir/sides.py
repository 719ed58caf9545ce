"""Sides of decisions, and the evidence that a side was seen: the conditions of :mod:`moec.ir.kinds`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from moec.ir.intervals import Interval, may_hold

Array = np.ndarray[Any, Any]
Given = Sequence[Array | None]
Evidence = Any
"""Facts that a condition keeps of the runs so far; None before the first run."""
Live = Array | None
"""Flags of the elements of a node's first output that reach the results of a run (:mod:`moec.ir.liveness`); None:
all."""
OUTPUT = -1
"""The place of a node's first output among its operands."""
NEAR = 1e-5
"""Relative distance within which a computed number counts as one of a few: runs round."""

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

    def merge(self, evidence: Evidence, inputs: Given, outputs: Given, live: Live = None) -> Evidence:
        """Evidence after another run, of which only ``live`` elements count."""
        ...

    def seen(self, evidence: Evidence, operands: Mapping[int, Interval]) -> bool:
        """Whether the runs took this side, or no input within the operands' intervals takes it."""
        ...

    def __str__(self) -> str: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Entries:
    """Bounds of more than one number, each of which has to be met on its own. Either ``ids`` gives the class of each
    entry of a constant, along the last axes of the result, or ``numbers`` are all that the operand ``place`` can be.
    ``place``: the operand whose intervals say which entries can be met; None where nothing is known."""

    place: int | None
    ids: Array | None = None
    numbers: Array | None = None

    def met(self, taken: Array, inputs: Given) -> Array:
        """Flags of the entries that lie where a side was ``taken``."""
        if self.ids is not None:
            ids: Array = self.ids
            if taken.ndim < ids.ndim or np.broadcast_shapes(taken.shape, ids.shape) != taken.shape:
                taken = np.broadcast_to(taken, np.broadcast_shapes(taken.shape, ids.shape))
            rows = over_repeats(taken, ids.shape)
            flags = np.zeros(int(ids.max(initial=-1)) + 1, bool)
            flags[ids[rows]] = True
            return flags
        assert self.place is not None and self.numbers is not None
        operand = inputs[self.place]
        assert operand is not None
        return which_of(self.numbers, np.broadcast_to(operand, np.broadcast_shapes(operand.shape, taken.shape))[taken])

    def possible(self, relation: Callable[[Interval], Array], interval: Interval) -> Array | bool:
        """Flags of the entries at which a side can be taken, by the interval of their operand; one flag for all if its
        shape differs."""
        if self.numbers is not None:
            return np.asarray(relation(Interval(self.numbers, self.numbers)))
        assert self.ids is not None
        possible = np.asarray(relation(interval)) if self.place is not None else np.array(True)
        if possible.shape != self.ids.shape:
            return bool(possible.any())
        classes = np.zeros(int(self.ids.max(initial=-1)) + 1, bool)
        classes[self.ids[possible]] = True
        return classes


def positions(constant: Array) -> Array:
    """A class of its own for each entry of a constant."""
    return np.arange(constant.size).reshape(constant.shape)


def which_of(numbers: Array, array: Array) -> Array:
    """Flags of ``numbers`` (ascending): whether an array has an element that is near it."""
    flags = np.zeros(numbers.size, bool)
    values = np.asarray(array, np.float64).ravel()
    values = values[~np.isnan(values)]
    if values.size > numbers.size:
        values = np.unique(values)
    right = np.clip(np.searchsorted(numbers, values), 0, numbers.size - 1)
    left = np.maximum(right - 1, 0)
    with np.errstate(all="ignore"):
        nearest = np.where(np.abs(numbers[left] - values) < np.abs(numbers[right] - values), left, right)
        near = (numbers[nearest] == values) | (np.abs(numbers[nearest] - values) <= NEAR * np.abs(numbers[nearest]))
    flags[nearest[near]] = True
    return flags


def counted(taken: Array, live: Live) -> Array:
    """``taken`` without the elements that decide only for elements of the result that are not live."""
    if live is None:
        return taken
    if live.shape == taken.shape:
        return taken & live
    try:
        both = np.broadcast_shapes(live.shape, taken.shape)
    except ValueError:
        return taken & live.any()
    if both == taken.shape:
        return taken & live
    if both != live.shape:
        return taken & live.any()
    return taken & over_repeats(live, taken.shape)


def over_repeats(flags: Array, shape: tuple[int, ...]) -> Array:
    """Reduce flags of a result to those of an operand of this shape, whose entries are repeated in it."""
    extra = flags.ndim - len(shape)
    repeated = tuple(range(extra)) + tuple(
        axis + extra for axis, size in enumerate(shape) if size == 1 and flags.shape[axis + extra] != 1
    )
    return np.asarray(flags.any(axis=repeated)).reshape(shape) if repeated else flags.reshape(shape)


@dataclasses.dataclass(frozen=True)
class Compares(Condition):
    """``left relation right`` holds somewhere. Operands are places of inputs, :data:`OUTPUT`, or a number on the right.

    Bounds on either side may be several numbers (one limit per expert). ``entries``: these have to be reached one by
    one.
    """

    left: int
    relation: str
    right: int | float
    number: bool = False
    entries: tuple[Entries, ...] = dataclasses.field(default=(), compare=False)

    def merge(self, evidence: Evidence, inputs: Given, outputs: Given, live: Live = None) -> Evidence:
        left, right = self._operands(inputs, outputs)
        if left is None or right is None:
            return evidence
        with np.errstate(all="ignore"):
            taken = counted(np.asarray(_RELATIONS[self.relation](left, right)), live)
        flags = [np.asarray(taken.any()), *(entries.met(taken, inputs) for entries in self.entries)]
        return flags if evidence is None else [old | new for old, new in zip(evidence, flags, strict=True)]

    def seen(self, evidence: Evidence, operands: Mapping[int, Interval]) -> bool:
        left = operands.get(self.left, Interval())
        right = Interval(float(self.right), float(self.right)) if self.number else operands.get(int(self.right))
        if right is None:  # an optional bound that is absent
            return True
        if not may_hold(self.relation, left, right).any():
            return True
        if evidence is None or not evidence[0]:
            return False

        bound = right.whole

        def holds(place: int | None) -> Callable[[Interval], Array]:
            if place == self.left or place is None:
                return lambda interval: may_hold(self.relation, interval, bound)
            return lambda interval: may_hold(self.relation, left.whole, interval)

        return all(
            np.all(
                met | ~np.asarray(entries.possible(holds(entries.place), operands.get(entries.place or 0, Interval())))
            )
            for entries, met in zip(self.entries, evidence[1:], strict=True)
        )

    def _operands(self, inputs: Given, outputs: Given) -> tuple[Any, Any]:
        def at(place: int) -> Any:
            return outputs[0] if place == OUTPUT else inputs[place] if place < len(inputs) else None

        return at(self.left), self.right if self.number else at(int(self.right))

    def __str__(self) -> str:
        def named(place: int) -> str:
            return "its result" if place == OUTPUT else f"input {place}"

        return f"{named(self.left)} {self.relation} {self.right if self.number else named(int(self.right))}"


@dataclasses.dataclass(frozen=True)
class Varies(Condition):
    """A selection, or a rounding to steps, has ``outcomes`` different outcomes, or all possible ones if these are
    fewer. ``outcome`` computes them from the operands."""

    outcome: Callable[[Given, Given], Array | None]
    what: str
    outcomes: int = 2

    def merge(self, evidence: Evidence, inputs: Given, outputs: Given, live: Live = None) -> Evidence:
        outcomes = self.outcome(inputs, outputs)
        seen = () if evidence is None else evidence
        if len(seen) >= self.outcomes or outcomes is None or not outcomes.size or (live is not None and not live.any()):
            return evidence
        if live is not None and live.shape == outcomes.shape:
            outcomes = outcomes[live]
        return np.union1d(seen, outcomes)[: self.outcomes]

    def seen(self, evidence: Evidence, operands: Mapping[int, Interval]) -> bool:
        low, high = operands[OUTPUT].whole if OUTPUT in operands else Interval()
        possible = min(self.outcomes, max(high - low + 1, 1)) if self.outcomes > 2 or low == high else 2
        return possible <= 1 or (evidence is not None and len(evidence) >= possible)

    def __str__(self) -> str:
        return f"another {self.what}" if self.outcomes == 2 else f"{self.outcomes} different {self.what}s"


@dataclasses.dataclass(frozen=True)
class Rounds(Condition):
    """A rounding never rounds: all numbers were whole. Every step of a rounding is a decision, too many to see each."""

    def merge(self, evidence: Evidence, inputs: Given, outputs: Given, live: Live = None) -> Evidence:
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
    """An integer is beyond the range of its type and wraps around. ``exact`` computes it in a type that holds more."""

    low: float
    high: float
    exact: Callable[[Given], Array]

    def merge(self, evidence: Evidence, inputs: Given, outputs: Given, live: Live = None) -> Evidence:
        with np.errstate(all="ignore"):
            exact = self.exact(inputs)
            return bool(evidence) or bool(counted((exact < self.low) | (exact > self.high), live).any())

    def seen(self, evidence: Evidence, operands: Mapping[int, Interval]) -> bool:
        return bool(evidence)

    def __str__(self) -> str:
        return f"an integer outside of {self.low:g} to {self.high:g}"


@dataclasses.dataclass(frozen=True, eq=False)
class Takes(Condition):
    """A result that can be only a few ``numbers``, ascending, takes each of them somewhere."""

    numbers: Array

    def merge(self, evidence: Evidence, inputs: Given, outputs: Given, live: Live = None) -> Evidence:
        result = outputs[0]
        assert result is not None
        taken = which_of(self.numbers, result if live is None or live.shape != result.shape else result[live])
        return taken if evidence is None else evidence | taken

    def seen(self, evidence: Evidence, operands: Mapping[int, Interval]) -> bool:
        return self.numbers.size <= 1 or (evidence is not None and bool(np.all(evidence)))

    def __str__(self) -> str:
        return f"it is each of the {self.numbers.size} numbers that it can be"


@dataclasses.dataclass(frozen=True, eq=False)
class Reads(Condition):
    """Each of the ``count`` classes of a table's entries is read somewhere; ``read`` returns flags of those that
    are."""

    count: int
    read: Callable[[Given, Given, Live], Array]

    def merge(self, evidence: Evidence, inputs: Given, outputs: Given, live: Live = None) -> Evidence:
        taken = self.read(inputs, outputs, live)
        return taken if evidence is None else evidence | taken

    def seen(self, evidence: Evidence, operands: Mapping[int, Interval]) -> bool:
        return self.count <= 1 or (evidence is not None and bool(np.all(evidence)))

    def __str__(self) -> str:
        return f"it reads each of the {self.count} different entries of a table"


@dataclasses.dataclass(frozen=True)
class Never(Condition):
    """A side that no run can show, because the operator is not known well enough."""

    what: str = "what it decides is not known"

    def merge(self, evidence: Evidence, inputs: Given, outputs: Given, live: Live = None) -> Evidence:
        return evidence

    def seen(self, evidence: Evidence, operands: Mapping[int, Interval]) -> bool:
        return False

    def __str__(self) -> str:
        return self.what
