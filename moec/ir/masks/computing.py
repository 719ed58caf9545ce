"""Elements of the results of operators that compute with numbers and truth values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import onnx_ir as ir
import sympy

from moec.ir.masks.choices import both_hide, by_truth, combined, hidden_otherwise, pair, typed
from moec.ir.masks.conditions import FALSE, TRUE, IndexCondition, Place, all_of, any_of, negated
from moec.ir.masks.elements import EitherNumber, Element, Rule, TensorElements, result_sizes, sizes_of


def _operands(elements: TensorElements, node: ir.Node, place: Place) -> list[Element] | None:
    """The elements of all operands of an operator that broadcasts them."""
    sizes = result_sizes(node)
    operands = [elements.operand(value, place, sizes) for value in node.inputs]
    return None if any(element is None for element in operands) else operands  # type: ignore[return-value]


def cast(elements: TensorElements, node: ir.Node, place: Place) -> Element | None:
    element, target = elements.at(node.inputs[0], place), node.outputs[0].dtype
    if element is None or target is None:
        return None
    if target == ir.DataType.BOOL:
        return _flag(element)
    if isinstance(element, sympy.Expr):
        narrow = target.itemsize < 8 and elements.depends_on_reads(element)
        return element if target.is_integer() and not narrow else None
    numbers = pair(element)
    return None if numbers is None else typed(numbers.condition, (numbers.yes, numbers.no), target)


def _flag(element: Element) -> IndexCondition | None:
    """Whether an element is not 0."""
    if isinstance(element, IndexCondition):
        return element
    if isinstance(element, sympy.Expr):
        return IndexCondition("unequal", element)
    return by_truth(element, lambda number: number != 0)


def arithmetic(function: Callable[[Any, Any], Any]) -> Rule:
    def rule(elements: TensorElements, node: ir.Node, place: Place) -> Element | None:
        operands, dtype = _operands(elements, node, place), node.outputs[0].dtype
        if operands is None or dtype is None:
            return None
        left, right = operands
        if isinstance(left, sympy.Expr) and isinstance(right, sympy.Expr):
            return sympy.expand(function(left, right))
        first, second = pair(left), pair(right)
        if first is None or second is None:
            return None
        result = combined(first, second, dtype, function)
        return both_hide(first, second) if result is None and node.op_type == "Add" else result

    return rule


def comparison(
    kind: Literal["reach", "equal"], distance: Callable[[Any, Any], Any], holds: Callable[[Any, Any], Any]
) -> Rule:
    """A comparison that holds where the ``distance`` of two integers is 0 or more (``reach``), or 0 (``equal``)."""

    def rule(elements: TensorElements, node: ir.Node, place: Place) -> Element | None:
        operands = _operands(elements, node, place)
        if operands is None:
            return None
        left, right = operands
        if isinstance(left, sympy.Expr) and isinstance(right, sympy.Expr):
            return IndexCondition(kind, sympy.expand(distance(left, right)))
        return _compared(left, right, holds)

    return rule


def _compared(left: Element, right: Element, holds: Callable[[Any, Any], Any]) -> IndexCondition | None:
    first, second = pair(left), pair(right)
    if first is None or second is None:
        return None
    if second.only is not None:
        return by_truth(first, lambda number: holds(number, second.only))
    return None if first.only is None else by_truth(second, lambda number: holds(first.only, number))


def logic(join: Callable[[list[IndexCondition]], IndexCondition]) -> Rule:
    def rule(elements: TensorElements, node: ir.Node, place: Place) -> Element | None:
        operands = _operands(elements, node, place)
        flags = [operand for operand in operands or () if isinstance(operand, IndexCondition)]
        return join(flags) if len(flags) == len(node.inputs) else None

    return rule


def where(elements: TensorElements, node: ir.Node, place: Place) -> Element | None:
    operands = _operands(elements, node, place)
    if operands is None or not isinstance(operands[0], IndexCondition):
        return None
    condition, yes, no = operands
    if condition in (TRUE, FALSE) or yes == no:
        return no if condition == FALSE else yes
    if isinstance(yes, IndexCondition) and isinstance(no, IndexCondition):
        return any_of([all_of([condition, yes]), all_of([negated(condition), no])])
    first, second = pair(yes), pair(no)
    if first is None or second is None:
        return None
    if first.only is not None and second.only is not None:
        return EitherNumber(condition, first.only, second.only)
    return hidden_otherwise(condition, first, second) or hidden_otherwise(negated(condition), second, first)


def cum_sum(elements: TensorElements, node: ir.Node, place: Place) -> Element | None:
    """Rule for sums of zeros alone."""
    sizes, axis = sizes_of(node), elements.number(node.inputs[1], (sympy.S.Zero,) * len(sizes_of(node, 1) or ()))
    if sizes is None or axis is None or not axis.is_Integer:
        return None
    summed = list(place)
    summed[int(axis)] = elements.axis("summed", sizes[int(axis)])
    element = elements.at(node.inputs[0], tuple(summed))
    number = element.only if isinstance(element, EitherNumber) else element
    return element if number == 0 else None


def trilu(elements: TensorElements, node: ir.Node, place: Place) -> Element | None:
    """Rule for one number or truth value in all places."""
    kept, shift = elements.at(node.inputs[0], place), node.inputs[1] if len(node.inputs) > 1 else None
    diagonal = sympy.S.Zero if shift is None else elements.number(shift, (sympy.S.Zero,) * len(sizes_of(node, 1) or ()))
    if kept is None or diagonal is None:
        return None
    above = place[-1] - place[-2] - diagonal
    inside = IndexCondition("reach", above if node.attributes.get_int("upper", 1) else -above)
    if isinstance(kept, IndexCondition):
        return all_of([inside, kept])
    number = pair(kept)
    return None if number is None or number.only is None else EitherNumber(inside, number.only, 0.0)
