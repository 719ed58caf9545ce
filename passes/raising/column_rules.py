"""Operators that treat all columns of a width alike, so that a copy with fewer columns computes the same function.

Data has its width on its last axis. A node qualifies only if it computes each column of its result in the same way: by
a product with a matrix of the experts, element by element, by sums along other axes, or by halves. Constants of several
elements, norms and softmaxes along the width, selections and reshapes of columns do not qualify.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Set

import numpy as np
import onnx_ir as ir

from moec.ir.live_rules import is_elementwise
from moec.passes.raising.block import Block
from moec.passes.raising.dataflow import Array

Widths = Mapping[int, int]
"""The width in the copy for each width in the block."""


@dataclasses.dataclass(frozen=True)
class Columns:
    """Context of the rules: the block, its weights, which the copy replaces, and the widths of data."""

    block: Block
    weights: Set[ir.Value]
    widths: Widths

    def is_data(self, value: ir.Value | None) -> bool:
        return value is not None and value in self.block.from_x

    def width(self, value: ir.Value | None) -> int | None:
        """The width of data, if the copy replaces it by another one."""
        last = None if value is None or not value.shape else value.shape[-1]
        return last if isinstance(last, int) and last in self.widths else None

    def half(self, value: ir.Value | None) -> tuple[int, int] | None:
        """Half of the width of data, here and in the copy, if both have halves."""
        width = self.width(value)
        half = self.widths.get(width // 2) if width is not None and width % 2 == 0 else None
        return None if width is None or half is None or 2 * half != self.widths[width] else (width // 2, half)

    def ints(self, value: ir.Value | None) -> list[int] | None:
        dataflow = self.block.dataflow
        return dataflow.array(value).ravel().tolist() if value is not None and dataflow.constant(value) else None

    def is_number(self, value: ir.Value) -> bool:
        return int(np.prod(self.block.dataflow.shape(value))) == 1


Numbers = dict[int, Array]
"""Inputs of a node in the copy, by their place, that refer to columns."""


def numbers_of_copy(columns: Columns) -> dict[ir.Node, Numbers] | None:
    """Inputs besides weights that the copy replaces. None if some node does not treat all columns alike."""
    numbers_of: dict[ir.Node, Numbers] = {}
    for node in columns.block.nodes:
        if node.op_type == "Shape" and _reads_width(columns, node):
            return None
        if any(columns.is_data(value) for value in node.outputs):
            numbers = _RULES.get(node.op_type, _elementwise)(columns, node) if node.domain == "" else None
            if numbers is None or any(columns.width(value) is None for value in node.outputs):
                return None
            numbers_of[node] = numbers
        elif any(value in columns.weights for value in node.inputs):
            return None
    return numbers_of


def _reads_width(columns: Columns, node: ir.Node) -> bool:
    value = node.inputs[0]
    rank = _rank(value)
    end = node.attributes.get_int("end", rank)
    return value in columns.block.from_x and (end + rank if end < 0 else end) >= rank


def _rank(value: ir.Value | None) -> int:
    return 0 if value is None or value.shape is None else len(value.shape)


def _elementwise(columns: Columns, node: ir.Node) -> Numbers | None:
    """Data with biases, single numbers and values without columns."""
    if not is_elementwise(node):
        return None
    for value in node.inputs:
        if value is None or columns.is_data(value) or value in columns.weights:
            continue
        is_single = columns.is_number(value) if columns.block.dataflow.constant(value) else _last(value) == 1
        if not is_single:
            return None
    return {}


def _last(value: ir.Value) -> object:
    return 1 if value.shape is not None and not len(value.shape) else None if value.shape is None else value.shape[-1]


def _product(columns: Columns, node: ir.Node) -> Numbers | None:
    """Columns are multiplied by a weight, or stay, while a value that is not data mixes the rows."""
    left, right, *added = node.inputs
    if added and added[0] is not None and added[0] not in columns.weights:
        return None
    if columns.is_data(left) and right in columns.weights and not node.attributes.get_int("transA", 0):
        return {}
    mixed = node.op_type == "MatMul" and columns.is_data(right) and left in columns.block.selected
    return {} if mixed and not columns.is_data(left) else None


def _einsum(columns: Columns, node: ir.Node) -> Numbers | None:
    """An einsum of one operand of data with weights or values without columns; no index twice in an operand."""
    terms, _, result = node.attributes["equation"].as_string().replace(" ", "").partition("->")
    operands = list(zip(terms.split(","), node.inputs, strict=True))
    data = [term for term, value in operands if columns.is_data(value)]
    if "." in terms or not result or len(data) != 1 or any(len(set(term)) < len(term) for term, _ in operands):
        return None
    column, met = data[0][-1], [value for term, value in operands if data[0][-1] in term]
    others = [value for _, value in operands if not columns.is_data(value)]
    if any(value not in columns.weights and value not in columns.block.selected for value in others):
        return None
    if len(met) == 1:
        return {} if result[-1] == column else None
    is_met = len(met) == 2 and column not in result and any(value in columns.weights for value in met)
    return {} if is_met else None


def _sum(columns: Columns, node: ir.Node) -> Numbers | None:
    data, axes = node.inputs[0], columns.ints(node.inputs[1]) if len(node.inputs) > 1 else None
    return {} if axes and _rank(data) - 1 not in _from_front(axes, _rank(data)) else None


def _from_front(axes: list[int], rank: int) -> list[int]:
    return [axis + rank if axis < 0 else axis for axis in axes]


def _other_axes(columns: Columns, node: ir.Node) -> Numbers | None:
    """Squeeze and Unsqueeze of axes other than the last."""
    axes = columns.ints(node.inputs[1]) if len(node.inputs) > 1 else None
    rank = max(_rank(node.inputs[0]), _rank(node.outputs[0]))
    return {} if axes and rank - 1 not in _from_front(axes, rank) else None


def _turned(columns: Columns, node: ir.Node) -> Numbers | None:
    order = node.attributes.get_ints("perm", [])
    return {} if order and order[-1] == len(order) - 1 else None


def _joined(columns: Columns, node: ir.Node) -> Numbers | None:
    """Data joined along an axis other than the last."""
    rank = _rank(node.outputs[0])
    is_outer = rank - 1 not in _from_front([node.attributes.get_int("axis", 0)], rank)
    return {} if is_outer and all(map(columns.is_data, node.inputs)) else None


def _split(columns: Columns, node: ir.Node) -> Numbers | None:
    """Halves of the width."""
    rank, halves = _rank(node.inputs[0]), columns.half(node.inputs[0])
    if (
        _from_front([node.attributes.get_int("axis", 0)], rank) != [rank - 1]
        or len(node.outputs) != 2
        or halves is None
    ):
        return None
    if len(node.inputs) < 2 or node.inputs[1] is None:
        return {}
    half, small = halves
    return {1: np.array([small, small])} if columns.ints(node.inputs[1]) == [half, half] else None


def _slice(columns: Columns, node: ir.Node) -> Numbers | None:
    """Halves of the width, or every second column."""
    starts, ends, axes, steps = (columns.ints(value) for value in (*node.inputs[1:], None, None)[:4])
    rank, halves = _rank(node.inputs[0]), columns.half(node.inputs[0])
    if halves is None or not starts or not ends or axes is None or _from_front(axes, rank) != [rank - 1]:
        return None
    half, small = halves
    taken = range(2 * half)[starts[0] : ends[0] : (steps or [1])[0]]
    for first, last, step in ((0, 2, 2), (1, 2, 2), (0, 1, 1), (1, 2, 1)):
        start = first if step == 2 else first * half
        if taken == range(start, last * half, step):
            return {1: np.array([first if step == 2 else first * small]), 2: np.array([last * small])}
    return None


_RULES: dict[str, Callable[[Columns, ir.Node], Numbers | None]] = {
    "Concat": _joined,
    "Einsum": _einsum,
    "Gemm": _product,
    "MatMul": _product,
    "ReduceSum": _sum,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _other_axes,
    "Transpose": _turned,
    "Unsqueeze": _other_axes,
}
