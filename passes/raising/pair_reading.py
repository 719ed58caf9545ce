"""Reading of experts' steps if each pair of a token and an expert has a copy of that expert's weights.

All pairs go through the same operators (the formulation ``batched``), so these are read once for all experts: products
with a matrix that is gathered by expert ids, and between them steps as in :mod:`moec.passes.raising.row_reading`.
"""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from moec.passes.graph.edits import is_op
from moec.passes.raising.block import Block
from moec.passes.raising.failure import NoResultError
from moec.passes.raising.row_reading import RowReading, not_by_rows
from moec.passes.raising.row_steps import PRODUCT, Step
from moec.passes.raising.weights import EntryPlace, ExpertTensor, in_turn


def pair_steps(block: Block) -> list[Step]:
    """The steps from rows of x to the experts' results; the last step computes these.

    Raises NoResultError if no value is finally multiplied by the router's weights, and NotUnderstoodError like
    :func:`moec.passes.raising.row_reading.steps_of`.
    """
    return _PairReading(block).steps_to(_weighed(block))


def _weighed(block: Block) -> ir.Value:
    """The value that weights without x multiply, after which only sums and changes of shape lead to y."""
    value = block.y
    while (node := value.producer()) is not None:
        inner = [v for v in node.inputs if v in block.from_x]
        if len(inner) != 1 or inner[0] is None:
            break
        if is_op(node, "Mul") and any(v in block.selected for v in node.inputs if v not in block.from_x):
            return inner[0]
        value = inner[0]
    raise NoResultError("no value was found that is the result of an expert")


class _PairReading(RowReading):
    def _matmul(self, node: ir.Node, value: ir.Value) -> int:
        left, right = node.inputs
        of_left, of_right = self._gathered(left), self._gathered(right)
        if of_left is None and of_right is None:
            return super()._matmul(node, value)
        if of_left is not None:
            rows, weight = self._of_column(node, right), of_left
            weight = dataclasses.replace(weight, shape=_swapped(weight.shape), entries=_turned(weight))
        else:
            assert of_right is not None
            rows, weight = left, of_right
        step = self.add(PRODUCT, [self.read(rows), weight, None], value)
        self.steps[step] = dataclasses.replace(self.steps[step], width=weight.shape[-1])
        return step

    def _gathered(self, value: ir.Value | None) -> ExpertTensor | None:
        """The matrices [E,a,b] from which a value gathers each pair's matrix."""
        node = None if value is None else value.producer()
        if node is None or not is_op(node, "Gather", "GatherND") or node.attributes.get_int("axis", 0) != 0:
            return None
        stack, ids = node.inputs[:2]
        dataflow = self.block.dataflow
        if stack is None or ids not in self.block.selected or not dataflow.constant(stack):
            return None
        shape = dataflow.shape(stack)
        return ExpertTensor(dataflow, shape, tuple(in_turn(stack, shape))) if len(shape) == 3 else None

    def _of_column(self, node: ir.Node, column: ir.Value | None) -> ir.Value:
        """The rows [...,n] that are columns [...,n,1] for a product."""
        maker = None if column is None else column.producer()
        rows = maker.inputs[0] if maker is not None and is_op(maker, "Reshape", "Unsqueeze") else None
        if column is None or rows is None or not _is_column_of(column, rows):
            raise not_by_rows(node)
        return rows

    def _shaping(self, node: ir.Node, value: ir.Value) -> int:
        data = node.inputs[0]
        if data is not None and node.op_type in ("Reshape", "Squeeze") and _is_column_of(data, value):
            return self.read(data)
        return super()._shaping(node, value)


def _is_column_of(column: ir.Value, rows: ir.Value) -> bool:
    if column.shape is None or rows.shape is None or len(column.shape) < 2 or not len(rows.shape):
        return False
    return column.shape[-1] == 1 and isinstance(rows.shape[-1], int) and column.shape[-2] == rows.shape[-1]


def _swapped(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[0], shape[2], shape[1]


def _turned(tensor: ExpertTensor) -> tuple[tuple[EntryPlace, ...], ...]:
    return tuple(tuple(place.turned for place in entry) for entry in tensor.entries)
