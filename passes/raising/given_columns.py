"""Mixtures without a common value for all weights: every expert's result is multiplied by a column of its own.

Routers of two levels, limits on places, and gates of single experts are written in this way. The columns [...,1] of a
sum of such products are joined to weights of all experts [...,E], and taken from there. The graph computes the same,
and :mod:`moec.passes.raising.given_weights` does the rest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import onnx_ir as ir

from moec.common.names import node_name
from moec.passes.graph.edits import is_op
from moec.passes.raising.block import width
from moec.passes.raising.contractions import is_contraction
from moec.passes.raising.dataflow import DataFlow
from moec.passes.raising.given_choices import source_of
from moec.passes.raising.unraised import MOST_EXPERTS

Use = tuple[ir.Node, int]


@dataclasses.dataclass(frozen=True)
class WeighingColumns:
    """Columns [...,1], and the operands where each multiplies the rows of an expert; these products are summed up."""

    values: tuple[ir.Value, ...]
    uses: tuple[Use, ...]

    def makers(self, dataflow: DataFlow) -> list[ir.Node]:
        """The nodes that compute the columns, from the products of routers on."""
        return dataflow.between(self.values, lambda value: is_contraction(value.producer()))


def columns(dataflow: DataFlow, graph: ir.Graph) -> Iterator[WeighingColumns]:
    """The columns of every sum of at least two such products."""
    for root in graph:
        if is_op(root, "Add") and not _is_summand(root):
            uses = [use for value in _summands(root) if (use := _weighed(dataflow, value)) is not None]
            values = tuple(value for node, index in uses if (value := node.inputs[index]) is not None)
            products = [output for node, _ in uses for output in node.outputs]
            if (
                2 <= len(uses) <= MOST_EXPERTS
                and not _are_some(values)
                and dataflow.dependents(products, graph).isdisjoint(values)
            ):
                yield WeighingColumns(values, tuple(uses))


@dataclasses.dataclass(frozen=True)
class Beside:
    """Joined columns: the ``mixture`` [...,E], and the node that takes it ``apart``."""

    columns: WeighingColumns
    mixture: ir.Value
    apart: ir.Node

    def undo(self, graph: ir.Graph) -> None:
        """Undo the rewrite, except for the order of independent nodes."""
        for (node, index), value in zip(self.columns.uses, self.columns.values, strict=True):
            node.replace_input_with(index, value)
        graph.remove([node for node in (self.apart, self.mixture.producer()) if node is not None])


def side_by_side(graph: ir.Graph, dataflow: DataFlow, weighing: WeighingColumns) -> Beside:
    """Rewrite the graph to take the columns from one value."""
    first = min((node for node, _ in weighing.uses), key=dataflow.order.__getitem__)
    makers = dataflow.between(weighing.values, lambda value: False)
    late = [node for node in makers if dataflow.order[node] > dataflow.order[first]]
    graph.remove(late)
    graph.insert_before(first, late)
    name = f"{node_name(first)}.columns"
    concat = ir.node("Concat", weighing.values, {"axis": -1}, name=f"{name}.mixture")
    apart = ir.node(
        "Split",
        concat.outputs,
        {"axis": -1, "num_outputs": len(weighing.values)},
        num_outputs=len(weighing.values),
        name=f"{name}.apart",
    )
    mixture, like = concat.outputs[0], weighing.values[0]
    assert like.shape is not None
    mixture.name, mixture.type = f"{name}.mixture.0", like.type
    mixture.shape = ir.Shape([*like.shape[:-1], len(weighing.values)])
    for number, output in enumerate(apart.outputs):
        output.name, output.type, output.shape = f"{name}.{number}", like.type, like.shape
    graph.insert_before(first, [concat, apart])
    for (node, index), value in zip(weighing.uses, apart.outputs, strict=True):
        node.replace_input_with(index, value)
    return Beside(weighing, mixture, apart)


def _are_some(columns: Sequence[ir.Value]) -> bool:
    """Whether columns are taken from one value that has more of them."""
    makers = [source_of(column).producer() for column in columns]
    wholes = {node.inputs[0] if is_op(node, "Gather", "Slice", "Split") else None for node in makers}
    whole = wholes.pop()
    return not wholes and whole is not None and (width(whole) or 0) > len(columns)


def _is_summand(node: ir.Node) -> bool:
    readers = list(node.outputs[0].consumers())
    return len(node.outputs[0].uses()) == 1 and not node.outputs[0].is_graph_output() and is_op(readers[0], "Add")


def _summands(root: ir.Node) -> Iterator[ir.Value]:
    """The summands of a tree of additions, in order."""
    pending = [*reversed(root.inputs)]
    while pending:
        value = pending.pop()
        node = None if value is None else value.producer()
        if is_op(node, "Add") and _is_summand(node):
            pending += reversed(node.inputs)
        elif value is not None:
            yield value


def _weighed(dataflow: DataFlow, value: ir.Value) -> Use | None:
    """The summand as a product of rows and a column, and the operand index of the column."""
    node = value.producer()
    if not is_op(node, "Mul") or len(value.uses()) != 1 or value.shape is None:
        return None
    for index, column in enumerate(node.inputs):
        if column is None or column.shape is None or column.dtype is None or dataflow.constant(column):
            continue
        if list(column.shape) == [*value.shape[:-1], 1] and width(value) not in (None, 1):
            return node, index
    return None
