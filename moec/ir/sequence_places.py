"""Rules of places in rows [sequences * step, ...] that are computed from the numbers of sequences.

Exporters write ``mask[sequence, time]`` this way: ``Gather (Reshape (mask), sequence * length + time)``.
"""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from moec.ir.graphs import is_op
from moec.ir.sequence_cuts import SAME, SequenceCut, Use, known_shape
from moec.ir.weights.stored import constant

_KEEPS_ELEMENTS = ("Expand", "Identity", "Reshape", "Squeeze", "Unsqueeze")


def first_rows(use: Use) -> SequenceCut | None:
    """Mul: the numbers of sequences times a size are the first rows of sequences that have so many rows each."""
    for numbers, size in ((0, 1), (1, 0)):
        cut, step = use.cuts[numbers], _size_in(use.node.inputs[size])
        if cut.kind == "numbers" and use.cuts[size] == SAME and step is not None and not use.sizes.counts(step):
            return _in_result(use, numbers, SequenceCut("first rows", cut.axis, step))
    return None


def own_rows(use: Use) -> SequenceCut | None:
    """Add: a first row plus numbers that are less than the rows of a sequence is a row of that sequence."""
    for first, number in ((0, 1), (1, 0)):
        cut = use.cuts[first]
        is_own = use.cuts[number] == SAME and _counts_to(use.node.inputs[number], cut.step)
        if cut.kind == "first rows" and is_own:
            return _in_result(use, first, dataclasses.replace(cut, kind="rows"))
    return None


def chosen_rows(use: Use) -> SequenceCut | None:
    """Gather: rows of each sequence, from data that have ``step`` rows for each."""
    data, places = use.cuts
    is_first = data == SequenceCut("cut", 0) and use.axis(0, len(use.shape(0))) == 0
    if not is_first or places.kind != "rows" or not use.sizes.is_cut(rows := use.shape(0)[0]):
        return None
    return SequenceCut("cut", places.axis) if use.sizes.product([rows]) == use.sizes.product([places.step]) else None


def _in_result(use: Use, place: int, cut: SequenceCut) -> SequenceCut | None:
    """The cut of an operand as one of the result of broadcasting, where the other operand has one element beside it."""
    distance = cut.axis - len(use.shape(place))
    other = use.shape(1 - place)
    is_alone = len(other) < -distance or other[distance] == 1
    return dataclasses.replace(cut, axis=len(use.output) + distance) if is_alone else None


def _plain(value: ir.Value | None) -> ir.Node | None:
    """The node that computes the elements of a value; None for constants and inputs."""
    node = None if value is None else value.producer()
    while is_op(node, *_KEEPS_ELEMENTS):
        node = None if node.inputs[0] is None else node.inputs[0].producer()
    return node


def _size_in(value: ir.Value | None) -> int | str | None:
    """The size that all elements of a value are."""
    stored, node = constant(value), _plain(value)
    if stored is not None:
        return int(stored.numpy().item()) if stored.size == 1 and stored.dtype.is_integer() else None
    sizes = known_shape(node.inputs[0]) if node is not None and is_op(node, "Shape") else None
    if node is None or sizes is None:
        return None
    chosen = sizes[node.attributes.get_int("start", 0) : node.attributes.get_int("end", len(sizes))]
    return chosen[0] if len(chosen) == 1 else None


def _counts_to(value: ir.Value | None, step: int | str) -> bool:
    """Whether all elements of a value are among 0, 1, ... step - 1."""
    node = _plain(value)
    if node is None or not is_op(node, "Range") or known_shape(node.outputs[0]) != [step]:
        return False
    start, _, delta = map(constant, node.inputs)
    return start is not None and delta is not None and (start.numpy().item(), delta.numpy().item()) == (0, 1)
