"""Elements of the results of operators that move elements or count places."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir
import sympy

from moec.ir.masks.conditions import Place
from moec.ir.masks.constants import plain
from moec.ir.masks.elements import Element, TensorElements, result_sizes, sizes_of

_MOST_JOINED = 8
"""The largest piece of a Concat whose elements are compared one by one with those of another piece."""


def same(elements: TensorElements, node: ir.Node, place: Place) -> Element | None:
    return elements.at(node.inputs[0], place)


def expand(elements: TensorElements, node: ir.Node, place: Place) -> Element | None:
    return elements.operand(node.inputs[0], place, result_sizes(node))


def reshape(elements: TensorElements, node: ir.Node, place: Place) -> Element | None:
    """Rule for a Reshape, Squeeze or Unsqueeze that adds or removes only axes of size 1."""
    before, after = sizes_of(node), result_sizes(node)
    if before is None:
        return None
    kept = [(size, index) for size, index in zip(after, place, strict=True) if size != 1]
    if [size for size, _ in kept] != [size for size in before if size != 1]:
        return None
    indices = iter([index for _, index in kept])
    return elements.at(node.inputs[0], tuple(sympy.S.Zero if size == 1 else next(indices) for size in before))


def transpose(elements: TensorElements, node: ir.Node, place: Place) -> Element | None:
    order = list(node.attributes.get_ints("perm", [*reversed(range(len(place)))]))
    return elements.at(node.inputs[0], tuple(place[order.index(axis)] for axis in range(len(place))))


def slice_(elements: TensorElements, node: ir.Node, place: Place) -> Element | None:
    sizes, starts = sizes_of(node), sizes_of(node, 1)
    if sizes is None or starts is None or len(starts) != 1 or not starts[0].is_Integer:
        return None
    moved = list(place)
    for number in range(int(starts[0])):
        entries = [
            elements.number(value, (sympy.Integer(number),)) if value is not None else None for value in node.inputs[1:]
        ]
        start, axis = entries[0], entries[2] if len(node.inputs) > 3 and node.inputs[3] is not None else number
        step = entries[3] if len(node.inputs) > 4 and node.inputs[4] is not None else sympy.S.One
        if start is None or step is None or axis is None or not sympy.sympify(axis).is_Integer:
            return None
        at = int(axis) % len(sizes)
        if start.is_Integer and start < 0:
            start = sizes[at] + start
        if not step.is_Integer or step < 1 or not elements.never_negative(start):
            return None
        moved[at] = start + step * place[at]
    return elements.at(node.inputs[0], tuple(moved))


def gather(elements: TensorElements, node: ir.Node, place: Place) -> Element | None:
    sizes, indices = sizes_of(node), sizes_of(node, 1)
    if sizes is None or indices is None:
        return None
    axis = node.attributes.get_int("axis", 0) % len(sizes)
    end = axis + len(indices)
    index = elements.number(node.inputs[1], place[axis:end])
    if index is not None and index.is_Integer and index < 0:
        index = sizes[axis] + index
    if index is None or not elements.never_negative(index):
        return None
    return elements.at(node.inputs[0], (*place[:axis], index, *place[end:]))


def gather_nd(elements: TensorElements, node: ir.Node, place: Place) -> Element | None:
    sizes = sizes_of(node, 1)
    if sizes is None or not sizes[-1].is_Integer or node.attributes.get_int("batch_dims", 0):
        return None
    rank = len(sizes) - 1
    indices = [elements.number(node.inputs[1], (*place[:rank], sympy.Integer(i))) for i in range(int(sizes[-1]))]
    if any(index is None or not elements.never_negative(index) for index in indices):
        return None
    return elements.at(node.inputs[0], (*indices, *place[rank:]))  # type: ignore[arg-type]


def concat(elements: TensorElements, node: ir.Node, place: Place) -> Element | None:
    """The piece that the index surely lies in; or an expression that gives the elements of all pieces."""
    axis = node.attributes.get_int("axis", 0) % len(place)
    start, pieces = sympy.S.Zero, []
    for number, value in enumerate(node.inputs):
        sizes = sizes_of(node, number)
        if sizes is None:
            return None
        inside = place[axis] - start
        if elements.never_negative(inside) and elements.never_negative(sizes[axis] - 1 - inside):
            return elements.at(value, (*place[:axis], inside, *place[axis + 1 :]))
        pieces.append((value, start, sizes[axis]))
        start += sizes[axis]
    longest = max(pieces, key=lambda piece: int(piece[2]) if piece[2].is_Integer else math.inf)
    return _continued(elements, pieces, longest, place, axis)


def _continued(elements: TensorElements, pieces: list[Any], longest: Any, place: Place, axis: int) -> sympy.Expr | None:
    """An expression of the index for the elements of the longest piece, if it gives those of all short ones, too."""

    def number(piece: Any, index: sympy.Expr) -> sympy.Expr | None:
        return elements.number(piece[0], (*place[:axis], index, *place[axis + 1 :]))

    index = elements.axis("joined", longest[2])
    general = number(longest, index)
    if general is None or elements.depends_on_reads(general):
        return None
    general = general.subs(index, index - longest[1])
    for piece in pieces:
        if piece is longest:
            continue
        if not piece[2].is_Integer or piece[2] > _MOST_JOINED:
            return None
        for offset in range(int(piece[2])):
            own = number(piece, sympy.Integer(offset))
            if own is None or sympy.expand(own - general.subs(index, piece[1] + offset)) != 0:
                return None
    return sympy.expand(general.subs(index, place[axis]))


def shape(elements: TensorElements, node: ir.Node, place: Place) -> Element | None:
    sizes = sizes_of(node)
    if sizes is None or not place[0].is_Integer:
        return None
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", len(sizes))
    return sizes[start:end][int(place[0])]


def range_(elements: TensorElements, node: ir.Node, place: Place) -> Element | None:
    start, step = (elements.number(node.inputs[position], ()) for position in (0, 2))
    return None if start is None or step is None else start + step * place[0]


def filled(elements: TensorElements, node: ir.Node, place: Place) -> Element | None:
    fill = node.attributes.get("value")
    return plain(fill.as_tensor().numpy().ravel()[0] if fill is not None else np.zeros(1, np.float32)[0])
