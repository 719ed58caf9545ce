"""The table of decisions: kinds, the operators that make them, and the evidence that runs have to show for each.
:mod:`moec.ir.watch` collects the evidence. An operator may be of several kinds; one without any counts as never seen
whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir

from moec.ir.decisions import DECIDING, PLAIN, sides
from moec.ir.facts import MOST_ENTRIES, Array, Facts
from moec.ir.few_numbers import MEETING, PRODUCTS, cases
from moec.ir.sides import OUTPUT, Compares, Condition, Entries, Never, Takes, positions
from moec.ir.tables import MIXING, PICKING, mixed, picked
from moec.ir.wrapping import WRAPPING, wraps

_ELEMENTWISE = (
    "Abs Add Cast Ceil Clip Div Erf Exp Floor Identity Log Max Min Mul Neg Pow Reciprocal Relu Round Sigmoid Softplus "
    "Sqrt Sub Tanh"
)
ELEMENTWISE = frozenset(_ELEMENTWISE.split())
"""Operators whose axes are, from the last on, those of their inputs."""


@dataclasses.dataclass(frozen=True)
class DecisionKind:
    """A kind of decision of nodes of these ``operators``. ``seen`` describes, for people, the results that runs have to
    show; ``conditions`` are the precise form for a node."""

    name: str
    seen: str
    operators: frozenset[str]
    conditions: Callable[[ir.Node, Facts], tuple[Condition, ...]]


def _decided(node: ir.Node, facts: Facts) -> tuple[Condition, ...]:
    return tuple(_by_entry(node, side, facts) if isinstance(side, Compares) else side for side in sides(node))


def _by_entry(node: ir.Node, condition: Compares, facts: Facts) -> Compares:
    """The same, met at each entry of the bounds that are several numbers."""
    places = [condition.left, *([] if condition.number else [int(condition.right)])]
    if OUTPUT in places or node.op_type == "PRelu":
        places = list(range(len(node.inputs))) if node.op_type in ("Equal", "PRelu") else []
    entries: list[Entries] = []
    for place in places:
        value = node.inputs[place] if place < len(node.inputs) else None
        if value is None:
            continue
        constant, numbers = facts.constants.array(value, MOST_ENTRIES), facts.numbers.get(value)
        if constant is not None:
            entries += [Entries(place, ids=positions(constant))] if constant.size > 1 else []
        elif value in facts.tables and numbers is not None and numbers.size > 1:
            entries.append(Entries(place, numbers=numbers))
        else:
            entries += [Entries(None, ids=positions(shift)) for shift in _shifts(value, facts)]
    return dataclasses.replace(condition, entries=tuple(entries)) if entries else condition


def _shifts(value: ir.Value, facts: Facts) -> Iterator[Array]:
    """Constants of several different numbers that a value was moved or scaled by, entry by entry: a bound that is
    compared with a number after it was subtracted."""
    seen, open_values = {value}, [value]
    while open_values:
        node = open_values.pop().producer()
        if node is None or node.op_type not in ELEMENTWISE:
            continue
        for operand in node.inputs:
            if operand is None or operand in seen:
                continue
            seen.add(operand)
            constant = facts.constants.array(operand, MOST_ENTRIES)
            if constant is None:
                open_values.append(operand)
            elif constant.size > 1 and np.any(constant != constant.ravel()[0]):
                yield constant


def _met(node: ir.Node, facts: Facts) -> tuple[Condition, ...]:
    numbers = cases(node, facts.numbers)
    if numbers is not None:
        return (Takes(numbers),) if node.outputs[0] not in facts.tables else ()
    few = [facts.numbers.get(value) for value in node.inputs if value is not None]
    if node.op_type in PRODUCTS and all(
        numbers is not None and numbers.size > 1 and not numbers[0] < 0 for numbers in few
    ):
        return (Compares(OUTPUT, "!=", 0, number=True), Compares(OUTPUT, "==", 0, number=True))
    return ()


KINDS = (
    DecisionKind(
        "formula", "nothing: the result is one formula, whatever the inputs are", PLAIN, lambda node, facts: ()
    ),
    DecisionKind(
        "decision",
        "each side was taken, at each entry of bounds that are several numbers; a selection had two outcomes, a "
        "division of integers four results; nothing was rounded",
        frozenset(DECIDING),
        _decided,
    ),
    DecisionKind("meeting", "values of few numbers made each number that they can", MEETING, _met),
    DecisionKind("picking", "each different entry of a table was picked", PICKING, picked),
    DecisionKind("mixing", "each different entry of a table was where what picks it is not 0", MIXING, mixed),
    DecisionKind("wrapping", "an integer was beyond its type, if it can be", WRAPPING, wraps),
)


def conditions(node: ir.Node, facts: Facts) -> tuple[Condition, ...]:
    """Conditions that runs have to show of a node."""
    kinds = [kind for kind in KINDS if node.op_type in kind.operators]
    if node.op_type not in PLAIN and node.op_type not in DECIDING:
        return (Never(),)
    return tuple(condition for kind in kinds for condition in kind.conditions(node, facts))
