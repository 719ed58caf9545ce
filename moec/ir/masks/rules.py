"""The rules by which elements are known."""

from __future__ import annotations

import operator

from moec.ir.masks import computing, moves
from moec.ir.masks.conditions import all_of, any_of, negated
from moec.ir.masks.constants import constant_element
from moec.ir.masks.elements import Rule, TensorElements

RULES: dict[str, Rule] = {
    "Add": computing.arithmetic(operator.add),
    "And": computing.logic(all_of),
    "Cast": computing.cast,
    "CastLike": computing.cast,
    "Concat": moves.concat,
    "ConstantOfShape": moves.filled,
    "CumSum": computing.cum_sum,
    "Equal": computing.comparison("equal", operator.sub, operator.eq),
    "Expand": moves.expand,
    "Gather": moves.gather,
    "GatherND": moves.gather_nd,
    "Greater": computing.comparison("reach", lambda left, right: left - right - 1, operator.gt),
    "GreaterOrEqual": computing.comparison("reach", operator.sub, operator.ge),
    "Identity": moves.same,
    "Less": computing.comparison("reach", lambda left, right: right - left - 1, operator.lt),
    "LessOrEqual": computing.comparison("reach", lambda left, right: right - left, operator.le),
    "Mul": computing.arithmetic(operator.mul),
    "Not": computing.logic(lambda flags: negated(flags[0])),
    "Or": computing.logic(any_of),
    "Range": moves.range_,
    "Reshape": moves.reshape,
    "Shape": moves.shape,
    "Slice": moves.slice_,
    "Squeeze": moves.reshape,
    "Sub": computing.arithmetic(operator.sub),
    "Transpose": moves.transpose,
    "Trilu": computing.trilu,
    "Unsqueeze": moves.reshape,
    "Where": computing.where,
}
"""Rules by operator. Nothing is known of the elements of other operators' results."""


def elements() -> TensorElements:
    """Elements of any graph."""
    return TensorElements(RULES, constant_element)
