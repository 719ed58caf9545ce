"""Numbers that are one of two, such as the addends that hide keys."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.ir.masks.conditions import TRUE, Condition, all_of, any_of, negated, truth
from moec.ir.masks.elements import Choice, Element

HIDDEN = -65504.0
"""The largest addend that hides a key, the lowest number of float16. Scores are taken to be far smaller."""


def pair(element: Element) -> Choice | None:
    """An element as one of two numbers."""
    if isinstance(element, Choice):
        return element
    if isinstance(element, Condition):
        return Choice(element, 1.0, 0.0)
    return Choice(TRUE, float(element), float(element)) if element.is_Integer else None


def by_truth(pair: Choice, holds: Callable[[float], Any]) -> Condition:
    """The condition under which something holds of a number that is one of two."""
    yes, no = bool(holds(pair.yes)), bool(holds(pair.no))
    if yes == no:
        return truth(yes)
    return pair.condition if yes else negated(pair.condition)


def typed(condition: Condition, numbers: Sequence[Any], dtype: ir.DataType) -> Choice | None:
    """A choice between two numbers of an element type; None where one is none."""
    yes, no = (float(np.asarray(number).astype(dtype.numpy())) for number in numbers)
    return None if np.isnan([yes, no]).any() else Choice(condition, yes, no)


def combined(first: Choice, second: Choice, dtype: ir.DataType, function: Callable[[Any, Any], Any]) -> Choice | None:
    """A function of two choices of which one is a single number, or that have the same condition, in the arithmetic of
    an element type."""
    if first.only is None and second.only is None and first.condition != second.condition:
        return None
    condition = second.condition if second.only is None else first.condition
    kind = dtype.numpy().type
    pairs = [
        [kind(number if choice.only is None else choice.only) for number in (choice.yes, choice.no)]
        for choice in (first, second)
    ]
    return typed(condition, [function(*numbers) for numbers in zip(*pairs, strict=True)], dtype)


def hiding(pair: Choice) -> Choice | None:
    """An addend that is 0 where its condition holds, and else hides a key; None for any other."""
    if pair.yes <= HIDDEN and pair.no == 0:
        pair = Choice(negated(pair.condition), pair.no, pair.yes)
    return pair if pair.yes == 0 and (pair.no <= HIDDEN or pair.condition == TRUE) else None


def both_hide(first: Choice, second: Choice) -> Choice | None:
    """The sum of addends that both hide keys. The number for hidden ones is the larger one."""
    left, right = hiding(first), hiding(second)
    if left is None or right is None:
        return None
    return Choice(all_of([left.condition, right.condition]), 0.0, max(left.no, right.no))


def hidden_otherwise(condition: Condition, taken: Choice, other: Choice) -> Choice | None:
    """An addend that is ``taken`` under a condition, and else one number that hides a key, or 0."""
    own = hiding(taken)
    if own is None or other.only is None:
        return None
    if other.only == 0:
        return Choice(any_of([negated(condition), own.condition]), 0.0, own.no)
    if other.only > HIDDEN:
        return None
    return Choice(all_of([condition, own.condition]), 0.0, max(own.no, other.only))
