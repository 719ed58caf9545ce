"""Einsum as transposes and batched matrix products, two operands at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import onnx_ir as ir
from tvm import relax

from moec.common.errors import UnsupportedError
from moec.targets.tvm.lowering.attributes import attribute, required_input
from moec.targets.tvm.lowering.context import LoweringContext
from moec.targets.tvm.lowering.nodes import reshape, transpose
from moec.targets.tvm.sizes.shapes import product

Multiply = Callable[[relax.Expr, relax.Expr], relax.Expr]
"""``left[B|1, M, K] @ right[B|1, K, N]``."""


@dataclasses.dataclass(frozen=True)
class Labelled:
    """A tensor and one letter per axis."""

    tensor: relax.Expr
    labels: str

    def size(self, label: str):
        return self.tensor.ty.shape[self.labels.index(label)]


def lower_einsum(lowering: LoweringContext, node: ir.Node, multiply: Multiply) -> relax.Expr:
    """Contract the operands from left to right by ``multiply``.

    Raises UnsupportedError for a letter repeated within one operand."""
    tensors = [lowering.tensor(required_input(node, position)) for position in range(len(node.inputs))]
    terms, result_labels = parse_equation(attribute(node, "equation", ""), [len(t.ty.shape) for t in tensors])
    operands = [Labelled(tensor, labels) for tensor, labels in zip(tensors, terms, strict=True)]
    current = operands[0]
    for position, operand in enumerate(operands[1:], start=2):
        needed = set(result_labels).union(*(later.labels for later in operands[position:]))
        current = _contract(lowering, multiply, current, operand, needed)
    current = _sum_out(lowering, current, set(result_labels))
    return transpose(lowering, current.tensor, [current.labels.index(label) for label in result_labels])


def parse_equation(equation: str, ranks: list[int]) -> tuple[list[str], str]:
    """The letters of every operand and of the result; an ellipsis becomes digits, counted from the last axis."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(ranks):
        raise UnsupportedError(f"equation '{equation}' has {len(terms)} terms for {len(ranks)} operands")
    widths = [rank - len(term.replace("...", "")) for term, rank in zip(terms, ranks, strict=True)]
    digits = "".join(str(9 - position) for position in reversed(range(max(widths, default=0))))
    expanded = [term.replace("...", digits[len(digits) - width :]) for term, width in zip(terms, widths, strict=True)]
    for term, rank in zip(expanded, ranks, strict=True):
        if len(set(term)) != len(term) or len(term) != rank:
            raise UnsupportedError(f"equation '{equation}': each operand needs one letter per axis, none repeated")
    if arrow:
        return expanded, right.replace("...", digits)
    letters = "".join(expanded)
    return expanded, digits + "".join(sorted(c for c in set(letters) if letters.count(c) == 1 and not c.isdigit()))


def _sum_out(lowering: LoweringContext, operand: Labelled, kept: set[str]) -> Labelled:
    axes = [axis for axis, label in enumerate(operand.labels) if label not in kept]
    if not axes:
        return operand
    labels = "".join(label for label in operand.labels if label in kept)
    return Labelled(lowering.emit(relax.op.sum(operand.tensor, axes)), labels)


def _contract(
    lowering: LoweringContext, multiply: Multiply, left: Labelled, right: Labelled, needed: set[str]
) -> Labelled:
    """Multiply two operands and sum over every letter that nothing needs any more."""
    left = _sum_out(lowering, left, needed | set(right.labels))
    right = _sum_out(lowering, right, needed | set(left.labels))
    shared = [label for label in left.labels if label in right.labels]
    batch = [label for label in shared if label in needed]
    summed = [label for label in shared if label not in needed]
    rows = [label for label in left.labels if label not in shared]
    columns = [label for label in right.labels if label not in shared]
    factors = (left, [batch, rows, summed]), (right, [batch, summed, columns])
    result = multiply(*(_matrices(lowering, operand, groups) for operand, groups in factors))
    sizes = [left.size(label) for label in [*batch, *rows]] + [right.size(label) for label in columns]
    return Labelled(reshape(lowering, result, sizes), "".join([*batch, *rows, *columns]))


def _matrices(lowering: LoweringContext, operand: Labelled, groups: list[list[str]]) -> relax.Expr:
    """The operand as three axes, each of which joins one group of letters."""
    order = [operand.labels.index(label) for group in groups for label in group]
    moved = transpose(lowering, operand.tensor, order)
    return reshape(lowering, moved, [product([operand.size(label) for label in group]) for group in groups])
