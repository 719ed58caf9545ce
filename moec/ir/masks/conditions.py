"""Truth values of a boolean tensor's elements, as conditions on their indices and on sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Literal

import onnx_ir as ir
import sympy

Place = tuple[sympy.Expr, ...]
"""The indices of an element, one for each axis."""


@dataclasses.dataclass(frozen=True)
class Origin:
    """The boolean tensor and the place of the element that a condition is the truth value of; of its opposite if
    ``negated``."""

    value: ir.Value
    place: Place
    negated: bool = False


@dataclasses.dataclass(frozen=True)
class IndexCondition:
    """A condition by its ``kind``.

    ``all`` and ``any`` of ``parts``; ``reach``: ``number`` >= 0; ``equal`` and ``unequal``: ``number`` is, or is not,
    0; ``read`` and ``unread``: an element of which nothing is known is, or is not, true, ``number`` being its symbol.
    ``origin`` is None where no tensor of the graph holds the truth value; it does not count in comparisons.
    """

    kind: Literal["all", "any", "reach", "equal", "unequal", "read", "unread"]
    number: sympy.Expr = sympy.S.Zero
    parts: tuple[IndexCondition, ...] = ()
    origin: Origin | None = dataclasses.field(default=None, compare=False)

    @property
    def conjuncts(self) -> tuple[IndexCondition, ...]:
        """Conditions that all have to hold, and suffice."""
        return self.parts if self.kind == "all" else (self,)


TRUE, FALSE = IndexCondition("all"), IndexCondition("any")
_OPPOSITES = {"all": "any", "any": "all", "equal": "unequal", "unequal": "equal", "read": "unread", "unread": "read"}


def truth(holds: bool) -> IndexCondition:
    """The condition that always holds, or never."""
    return TRUE if holds else FALSE


def all_of(conditions: Iterable[IndexCondition]) -> IndexCondition:
    """The conjunction, without parts that are true or repeated."""
    parts = dict.fromkeys(part for condition in conditions for part in condition.conjuncts)
    if FALSE in parts:
        return FALSE
    return next(iter(parts)) if len(parts) == 1 else IndexCondition("all", parts=tuple(parts))


def any_of(conditions: Iterable[IndexCondition]) -> IndexCondition:
    """The disjunction."""
    return negated(all_of([negated(condition) for condition in conditions]))


def negated(condition: IndexCondition) -> IndexCondition:
    """The opposite of a condition."""
    origin = condition.origin
    if origin is not None:
        origin = dataclasses.replace(origin, negated=not origin.negated)
    if condition.kind == "reach":
        return IndexCondition("reach", -condition.number - 1, origin=origin)
    kind = _OPPOSITES[condition.kind]
    parts = tuple(negated(part) for part in condition.parts)
    return IndexCondition(kind, condition.number, parts, origin)  # type: ignore[arg-type]
