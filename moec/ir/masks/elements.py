"""Elements of a graph's tensors as expressions of their indices.

An element is asked for by its place, and the question is passed on through the operators that move elements to those
that make them: the element [q, k] of ``LessOrEqual(Unsqueeze(Range(0, L, 1), 0), Unsqueeze(Range(0, S, 1), 1))`` is
``k <= q``. Numbers of which nothing is known, such as those of inputs, become symbols: two questions for the same
element get the same symbol. Arithmetic is that of whole numbers without bounds, so results hold for tensors whose sizes
and positions their integer types can hold.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir
import sympy

from moec.ir.graphs import is_op
from moec.ir.masks.conditions import FALSE, TRUE, IndexCondition, Origin, Place, all_of, any_of
from moec.ir.sizes import shape_of


@dataclasses.dataclass(frozen=True)
class EitherNumber:
    """A number of a floating-point type, or 0 or 1 for a truth value: ``yes`` under the condition, else ``no``."""

    condition: IndexCondition
    yes: float
    no: float

    @property
    def only(self) -> float | None:
        """The number, if there is one alone."""
        if self.condition in (TRUE, FALSE):
            return self.yes if self.condition == TRUE else self.no
        return self.yes if self.yes == self.no else None


Element = sympy.Expr | IndexCondition | EitherNumber
"""An integer, a truth value, or one of two numbers."""
Rule = Callable[["TensorElements", ir.Node, Place], Element | None]
"""Element of a node's first output from those of its operands; None where it is not known."""
Constants = Callable[[ir.Value, Place], Element | None]
"""Element of a constant; None where it is not known."""


class TensorElements:
    """Elements of the tensors of a graph with inferred shapes. Valid until the graph changes."""

    def __init__(self, rules: Mapping[str, Rule], constant: Constants) -> None:
        self._rules, self._constant = rules, constant
        self._known: dict[tuple[ir.Value, Place], Element | None] = {}
        self._read: dict[tuple[ir.Value, Place], sympy.Symbol] = {}
        self._limits: dict[sympy.Symbol, sympy.Expr] = {}
        self._of_scores: dict[tuple[str, sympy.Expr], sympy.Symbol] = {}

    def score_axis(self, label: str, size: sympy.Expr) -> sympy.Symbol:
        """The symbol of an axis of scores: the same one for attentions with axes of that size."""
        if (label, size) not in self._of_scores:
            self._of_scores[label, size] = self.axis(label, size)
        return self._of_scores[label, size]

    def axis(self, label: str, size: sympy.Expr) -> sympy.Symbol:
        """A new symbol for every index of an axis of that size."""
        symbol = sympy.Dummy(label, integer=True, nonnegative=True)
        self._limits[symbol] = size
        return symbol

    def at(self, value: ir.Value | None, place: Place) -> Element | None:
        """The element at a place; None for a floating-point number that is not known."""
        if value is None:
            return None
        place = tuple(map(sympy.expand, place))
        asked = value, place
        if asked not in self._known:
            element = self._evaluate(value, place)
            element = self.read(value, place) if element is None else element
            if isinstance(element, IndexCondition):
                element = dataclasses.replace(self._decided(element), origin=Origin(value, place))
            elif isinstance(element, EitherNumber):
                element = dataclasses.replace(element, condition=self._decided(element.condition))
            self._known[asked] = element
        return self._known[asked]

    def number(self, value: ir.Value | None, place: Place) -> sympy.Expr | None:
        """The element if it is an integer."""
        element = self.at(value, place)
        return element if isinstance(element, sympy.Expr) else None

    def operand(self, value: ir.Value | None, place: Place, sizes: list[sympy.Expr]) -> Element | None:
        """The element of a tensor that broadcasts to ``sizes``; None where it is not known that it does."""
        dims = None if value is None else known_sizes(value)
        if value is None or dims is None or len(dims) > len(sizes):
            return None
        behind = len(sizes) - len(dims)
        own: list[sympy.Expr] = []
        for dim, index, size in zip(dims, place[behind:], sizes[behind:], strict=True):
            if dim != 1 and sympy.expand(dim - size) != 0:
                return None
            own.append(sympy.S.Zero if dim == 1 else index)
        return self.at(value, tuple(own))

    def read(self, value: ir.Value, place: Place) -> Element | None:
        """A symbol for an element of which nothing is known."""
        if value.dtype is None or not (value.dtype.is_integer() or value.dtype == ir.DataType.BOOL):
            return None
        symbol = self._read.setdefault((value, place), sympy.Dummy("read", integer=True))
        return IndexCondition("read", symbol) if value.dtype == ir.DataType.BOOL else symbol

    def never_negative(self, number: sympy.Expr) -> bool:
        """Whether a number is 0 or more for all indices of all axes and all sizes. False where it is not known."""
        number = sympy.expand(number)
        for symbol in sorted(number.free_symbols & self._limits.keys(), key=str):
            factor = number.coeff(symbol, 1)
            if not factor.is_number or sympy.expand(number - factor * symbol).has(symbol):
                return False
            number = sympy.expand(number.subs(symbol, self._limits[symbol] - 1 if factor < 0 else 0))
        return bool(number.is_nonnegative)

    def depends_on_reads(self, number: sympy.Expr) -> bool:
        """Whether a number depends on elements of which nothing is known."""
        return not number.free_symbols.isdisjoint(self._read.values())

    def _evaluate(self, value: ir.Value, place: Place) -> Element | None:
        if value.const_value is not None and not value.is_graph_input():
            return self._constant(value, place)
        node = value.producer()
        rule = None if node is None or node.domain != "" or value.index() != 0 else self._rules.get(node.op_type)
        if node is None or rule is None or known_sizes(value) is None:
            return None
        with np.errstate(all="ignore"):
            return rule(self, node, place)

    def _decided(self, condition: IndexCondition) -> IndexCondition:
        """The condition, or true or false where it always is."""
        number = condition.number
        if condition.kind in ("all", "any"):
            join = all_of if condition.kind == "all" else any_of
            return join([self._decided(part) for part in condition.parts])
        if condition.kind == "reach":
            if self.never_negative(number):
                return TRUE
            return FALSE if self.never_negative(-number - 1) else condition
        if condition.kind in ("equal", "unequal"):
            if sympy.expand(number) == 0:
                return TRUE if condition.kind == "equal" else FALSE
            if self.never_negative(number - 1) or self.never_negative(-number - 1):
                return FALSE if condition.kind == "equal" else TRUE
        return condition


def known_sizes(value: ir.Value) -> list[sympy.Expr] | None:
    """The sizes of a value; None where one is not known. The size along which a Concat joins its operands is their sum,
    since a model may declare an output with a new name for it."""
    sizes, node = shape_of(value), value.producer()
    if sizes is None or not is_op(node, "Concat"):
        return sizes
    pieces = [None if piece is None else shape_of(piece) for piece in node.inputs]
    axis = node.attributes.get_int("axis", 0) % len(sizes)
    if None not in pieces:
        sizes[axis] = sympy.expand(sum(piece[axis] for piece in pieces if piece is not None))
    return sizes


def sizes_of(node: ir.Node, position: int = 0) -> list[sympy.Expr] | None:
    """The sizes of an operand; None where it is absent, or one is not known."""
    value = node.inputs[position] if position < len(node.inputs) else None
    return None if value is None else known_sizes(value)


def result_sizes(node: ir.Node) -> list[sympy.Expr]:
    """The sizes of a result whose element is asked for, which are known."""
    sizes = known_sizes(node.outputs[0])
    assert sizes is not None
    return sizes
