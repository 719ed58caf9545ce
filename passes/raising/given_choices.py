"""Mixtures whose experts are not selected only by scores of their own: by a table of tokens, or a router whose weights
go to other parts, too. The nodes that select and weigh stay as they are.

Tokens gather the weights of their experts by ids [T,k], and results are multiplied by weights [T,k]. These weights are
spread to weights of all experts [T,E], and ids and weights are selected from there. The graph computes the same, except
for the order of a token's experts, and :mod:`moec.passes.raising.given_weights` does the rest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from moec.common.names import node_name
from moec.ir.graphs import add_constant
from moec.ir.movement import moving
from moec.passes.graph.edits import is_op
from moec.passes.raising.block import width
from moec.passes.raising.contractions import is_contraction
from moec.passes.raising.dataflow import DataFlow

_SHAPING = moving(drops=False, repeats=False, reorders=False)
MOST_READERS = 64
"""Largest number of nodes from gathered weights to the product with a token's weights."""

Use = tuple[ir.Node, int]


@dataclasses.dataclass(frozen=True)
class Choice:
    """A given selection of experts: ``ids`` [T,k] (int64) among ``experts``, with ``weights`` [T,k]. Experts read both
    at their ``uses``."""

    ids: ir.Value
    weights: ir.Value
    experts: int
    uses: tuple[tuple[Use, ...], tuple[Use, ...]]

    @property
    def readers(self) -> list[ir.Node]:
        """The nodes of experts that read ids and weights."""
        return [node for uses in self.uses for node, _ in uses]

    def selections(self, dataflow: DataFlow) -> list[ir.Node]:
        """The nodes that compute the ids."""
        return dataflow.between([self.ids], lambda value: is_contraction(value.producer()))


def choices(dataflow: DataFlow, graph: ir.Graph) -> Iterator[Choice]:
    """Given selections by whose ids at least two stacks of weights are gathered, as experts need them."""
    gathers: dict[ir.Value, list[ir.Node]] = {}
    for node in graph:
        if is_op(node, "Gather", "GatherND") and is_stack(dataflow, node.inputs[0]):
            ids = source_of(node.inputs[1])
            if ids.dtype == ir.DataType.INT64 and _are_pairs(ids) and not dataflow.constant(ids):
                gathers.setdefault(ids, []).append(node)
    for ids, nodes in gathers.items():
        counts = {dataflow.shape(node.inputs[0])[0] for node in nodes if node.inputs[0] is not None}
        product = _weighed(dataflow, nodes, ids)
        if len(nodes) < 2 or len(counts) > 1 or product is None:
            continue
        readers = [(node, 1) for node in nodes]
        uses = tuple(_uses(dataflow, readers, ids)), tuple(_uses(dataflow, [product], source_of(_operand(product))))
        yield Choice(ids, source_of(_operand(product)), counts.pop(), uses)
    yield from _compared(dataflow, graph)


def _compared(dataflow: DataFlow, graph: ir.Graph) -> Iterator[Choice]:
    """Given selections whose ids are compared with the id of every expert, as loops over experts do. The weights are
    the last value of the ids' shape that is computed before the loop."""
    comparisons: dict[ir.Value, list[Use]] = {}
    for node in graph:
        for index, value in enumerate(node.inputs if is_op(node, "Equal") else ()):
            ids, other = source_of(value), node.inputs[1 - index]
            if ids.dtype == ir.DataType.INT64 and _are_pairs(ids) and dataflow.constant(other):
                comparisons.setdefault(ids, []).append((node, index))
    for ids, readers in comparisons.items():
        others = [other for node, index in readers if (other := node.inputs[1 - index]) is not None]
        numbers = sorted({int(number) for other in others for number in dataflow.array(other).ravel()})
        first = min(dataflow.order[node] for node, _ in readers)
        earlier = (value for node in graph if dataflow.order[node] < first for value in node.outputs)
        weights = [value for value in earlier if value.shape == ids.shape and _is_float(value)]
        if len(numbers) < 2 or numbers != list(range(len(numbers))) or not weights or dataflow.constant(ids):
            continue
        of_weights = tuple((node, index) for node, index in weights[-1].uses() if dataflow.order[node] > first)
        yield Choice(ids, weights[-1], len(numbers), (tuple(_uses(dataflow, readers, ids)), of_weights))


@dataclasses.dataclass(frozen=True)
class ScatteredSelection:
    """A given selection, rewritten as a selection among weights of all experts: ``mixture`` [T,E], and the
    ``selection`` that takes k of them."""

    choice: Choice
    mixture: ir.Value
    selection: ir.Node
    nodes: tuple[ir.Node, ...]

    def undo(self, graph: ir.Graph) -> None:
        """Change the graph back."""
        for uses, value in zip(self.choice.uses, (self.choice.ids, self.choice.weights), strict=True):
            for node, index in uses:
                node.replace_input_with(index, value)
        graph.remove(self.nodes)


def scattered(graph: ir.Graph, dataflow: DataFlow, choice: Choice) -> ScatteredSelection | None:
    """Rewrite the graph to select experts by a mixture. None, without a change, if ids are read before weights are
    computed."""
    ids, weights = choice.ids, choice.weights
    first = min(choice.readers, key=dataflow.order.__getitem__)
    makers = [dataflow.order[node] for value in (ids, weights) if (node := value.producer()) is not None]
    k, dtype = width(ids), weights.dtype
    if any(order >= dataflow.order[first] for order in makers) or ids.shape is None or k is None or dtype is None:
        return None
    nodes: list[ir.Node] = []
    name = f"{node_name(first)}.choice"

    def add(op_type: str, label: str, *inputs: ir.Value, outputs: int = 1, **attributes: object) -> ir.Node:
        node = ir.node(op_type, inputs, attributes, num_outputs=outputs, name=f"{name}.{label}")  # type: ignore[arg-type]
        for number, output in enumerate(node.outputs):
            output.name = f"{name}.{label}.{number}"
        nodes.append(node)
        return node

    def constant(*numbers: int) -> ir.Value:
        return add_constant(graph, ir.tensor(np.array(numbers, np.int64)), f"{name}.{len(nodes)}")

    rows = add("Shape", "rows", ids, start=0, end=1).outputs[0]
    shape = add("Concat", "shape", rows, constant(choice.experts), axis=0).outputs[0]
    zero = ir.tensor(np.zeros(1, dtype.numpy()))
    zeros = add("ConstantOfShape", "zeros", shape, value=zero).outputs[0]
    mixture = add("ScatterElements", "mixture", zeros, ids, weights, axis=1, reduction="add").outputs[0]
    selection = add("TopK", "chosen", mixture, constant(k), outputs=2, axis=-1)
    for value in (zeros, mixture):
        value.shape, value.type = ir.Shape([ids.shape[0], choice.experts]), weights.type
    for value, like in zip(selection.outputs, (weights, ids), strict=True):
        value.shape, value.type = like.shape, like.type
    rows.type = shape.type = ids.type
    graph.insert_before(first, nodes)
    for uses, value in zip(choice.uses, reversed(selection.outputs), strict=True):
        for node, index in uses:
            node.replace_input_with(index, value)
    return ScatteredSelection(choice, mixture, selection, tuple(nodes))


def is_stack(dataflow: DataFlow, value: ir.Value | None) -> bool:
    """Whether a value holds a matrix for each expert."""
    return value is not None and dataflow.constant(value) and len(dataflow.shape(value)) == 3


def source_of(value: ir.Value | None) -> ir.Value:
    """The value from which this one differs only in shape or type."""
    assert value is not None
    while (node := value.producer()) is not None and node.op_type in _SHAPING and node.inputs[0] is not None:
        value = node.inputs[0]
    return value


def _is_float(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.is_floating_point()


def _are_pairs(value: ir.Value) -> bool:
    return value.shape is not None and len(value.shape) == 2 and isinstance(value.shape[1], int)


def _weighed(dataflow: DataFlow, gathers: list[ir.Node], ids: ir.Value) -> Use | None:
    """The first product of results of gathered weights with weights [T,k], and the index of that operand."""
    reached = {value for node in gathers for value in node.outputs}
    for _, node in zip(range(MOST_READERS), dataflow.readers(reached), strict=False):
        others = [index for index, value in enumerate(node.inputs) if value is not None and value not in reached]
        if is_op(node, "Mul") and len(others) == 1:
            weights = source_of(node.inputs[others[0]])
            if (
                _is_float(weights)
                and _are_pairs(weights)
                and weights.shape == ids.shape
                and not dataflow.constant(weights)
            ):
                return node, others[0]
        reached.update(node.outputs)
    return None


def _operand(use: Use) -> ir.Value | None:
    node, index = use
    return node.inputs[index]


def _uses(dataflow: DataFlow, readers: list[Use], source: ir.Value) -> Iterator[Use]:
    """The uses of a value on the way to ``readers``, which read it in another shape."""
    between = dataflow.between([v for use in readers if (v := _operand(use)) is not None], lambda v: v is source)
    nodes = {*between, *(node for node, _ in readers)}
    for node, index in source.uses():
        if node in nodes and (node in between or (node, index) in readers):
            yield node, index
