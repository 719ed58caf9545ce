"""Numbers that are one of two, such as the addends that hide keys."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.ir.masks.conditions import TRUE, IndexCondition, all_of, any_of, negated, truth
from moec.ir.masks.elements import EitherNumber, Element

HIDDEN = -65504.0
"""The largest addend that hides a key, the lowest number of float16. Scores are taken to be far smaller."""


def pair(element: Element) -> EitherNumber | None:
    """An element as one of two numbers."""
    if isinstance(element, EitherNumber):
        return element
    if isinstance(element, IndexCondition):
        return EitherNumber(element, 1.0, 0.0)
    return EitherNumber(TRUE, float(element), float(element)) if element.is_Integer else None


def by_truth(pair: EitherNumber, holds: Callable[[float], Any]) -> IndexCondition:
    """The condition under which something holds of a number that is one of two."""
    yes, no = bool(holds(pair.yes)), bool(holds(pair.no))
    if yes == no:
        return truth(yes)
    return pair.condition if yes else negated(pair.condition)


def typed(condition: IndexCondition, numbers: Sequence[Any], dtype: ir.DataType) -> EitherNumber | None:
    """A choice between two numbers of an element type; None where one is none."""
    yes, no = (float(np.asarray(number).astype(dtype.numpy())) for number in numbers)
    return None if np.isnan([yes, no]).any() else EitherNumber(condition, yes, no)


def combined(
    first: EitherNumber, second: EitherNumber, dtype: ir.DataType, function: Callable[[Any, Any], Any]
) -> EitherNumber | None:
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


def hiding(pair: EitherNumber) -> EitherNumber | None:
    """An addend that is 0 where its condition holds, and else hides a key; None for any other."""
    if pair.yes <= HIDDEN and pair.no == 0:
        pair = EitherNumber(negated(pair.condition), pair.no, pair.yes)
    return pair if pair.yes == 0 and (pair.no <= HIDDEN or pair.condition == TRUE) else None


def both_hide(first: EitherNumber, second: EitherNumber) -> EitherNumber | None:
    """The sum of addends that both hide keys. The number for hidden ones is the larger one."""
    left, right = hiding(first), hiding(second)
    if left is None or right is None:
        return None
    return EitherNumber(all_of([left.condition, right.condition]), 0.0, max(left.no, right.no))


def hidden_otherwise(condition: IndexCondition, taken: EitherNumber, other: EitherNumber) -> EitherNumber | None:
    """An addend that is ``taken`` under a condition, and else one number that hides a key, or 0."""
    own = hiding(taken)
    if own is None or other.only is None:
        return None
    if other.only == 0:
        return EitherNumber(any_of([negated(condition), own.condition]), 0.0, own.no)
    if other.only > HIDDEN:
        return None
    return EitherNumber(all_of([condition, own.condition]), 0.0, max(own.no, other.only))
