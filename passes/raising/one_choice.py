"""Mixtures that give a token to one expert, whose result has no weight.

Ids may come from a table of tokens (hash layers, arXiv 2106.04426) or be those of the largest score. Flags [...,E], at
most one per token, may come from a router whose places run out (Switch Transformers, arXiv 2101.03961, where a token
without a place goes on as it is). Ids are rewritten as a selection among scores of which one is 1. So are flags, with
one more score for tokens that have none. The graph computes the same, and its router is now known: the largest score,
with a weight of 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from moec.common.names import node_name
from moec.ir.dialect import RouteSpec
from moec.ir.graphs import add_constant
from moec.ir.intervals import MOST_BOUNDS, UNIT, Interval, intervals
from moec.passes.graph.edits import fresh_name, is_op
from moec.passes.raising.block import width
from moec.passes.raising.contractions import is_contraction
from moec.passes.raising.dataflow import Array, DataFlow
from moec.passes.raising.given_choices import is_stack, source_of
from moec.passes.raising.given_weights import most_chosen
from moec.passes.raising.router import RoutingProposal
from moec.passes.raising.unraised import MOST_EXPERTS

Use = tuple[ir.Node, int]
ROUTING = RoutingProposal(RouteSpec(1, "softmax_topk"))
"""Routing to one expert, whose weight is the softmax of one number: 1."""


@dataclasses.dataclass(frozen=True)
class OneChoice:
    """The ids [...] of one of ``experts`` for every token, or flags [...,experts]; ``uses``: the operands that read
    them."""

    value: ir.Value
    experts: int
    uses: tuple[Use, ...]

    def makers(self, dataflow: DataFlow) -> list[ir.Node]:
        """The nodes that compute the ids or flags, from the router's product on."""
        return dataflow.between([self.value], lambda value: is_contraction(value.producer()))


@dataclasses.dataclass(frozen=True)
class Selected:
    """Ids or flags, rewritten as a selection among ``scores`` [...,E]."""

    choice: OneChoice
    scores: ir.Value
    selection: ir.Node
    nodes: tuple[ir.Node, ...]

    def undo(self, graph: ir.Graph) -> None:
        """Change the graph back."""
        for node, index in self.choice.uses:
            node.replace_input_with(index, self.choice.value)
        graph.remove(self.nodes)


def chosen_ids(dataflow: DataFlow, graph: ir.Graph) -> Iterator[OneChoice]:
    """Ids by which stacks of weights are gathered, or that are compared with the id of every expert."""
    stored_of: dict[ir.Value, int] = {}
    for node in graph:
        stack = node.inputs[0] if is_op(node, "Gather", "GatherND") else None
        if is_stack(dataflow, stack) or is_op(node, "Equal"):
            stored = 0 if stack is None else dataflow.shape(stack)[0]
            for value in node.inputs[-2:]:
                if value is not None and value.dtype == ir.DataType.INT64 and not dataflow.constant(value):
                    ids = source_of(value)
                    stored_of[ids] = max(stored_of.get(ids, 0), stored)
    for ids, stored in stored_of.items():
        if ids.producer() is None or ids.shape is None or is_op(ids.producer(), "TopK"):  # which has weights as well
            continue
        least, most = _bounds(dataflow, ids)
        if least >= 0 and 1 <= most < (stored or MOST_EXPERTS):
            yield OneChoice(ids, stored or int(most) + 1, tuple(ids.uses()))


def chosen_flags(dataflow: DataFlow, graph: ir.Graph) -> Iterator[OneChoice]:
    """Flags from which no other flags are computed."""
    width_of: dict[ir.Value, int] = {}
    for node in graph:
        for value in node.outputs:
            E = width(value)
            if (
                E is not None
                and 2 <= E < MOST_EXPERTS
                and most_chosen(dataflow, value, {}) == 1
                and _are_flags(dataflow, value)
            ):
                width_of[value] = E
    for value, E in width_of.items():
        if not any(output in width_of for node in value.consumers() for output in node.outputs):
            yield OneChoice(value, E, tuple(value.uses()))


def select(graph: ir.Graph, dataflow: DataFlow, choice: OneChoice) -> Selected:
    """Rewrite the graph to compute ids or flags by a selection."""
    value, E = choice.value, choice.experts
    are_ids = width(value) != E or not _are_flags(dataflow, value)
    maker = value.producer()
    assert maker is not None and value.shape is not None and value.dtype is not None
    nodes: list[ir.Node] = []
    name = f"{node_name(maker)}.one"
    leading = list(value.shape if are_ids else value.shape[:-1])

    def add(
        op_type: str,
        label: str,
        shape: list[int | ir.SymbolicDim],
        dtype: ir.DataType,
        *inputs: ir.Value,
        **attributes: object,
    ) -> ir.Value:
        node = ir.node(op_type, inputs, attributes, name=f"{name}.{label}")  # type: ignore[arg-type]
        (output,) = node.outputs
        output.name, output.dtype, output.shape = f"{name}.{label}.0", dtype, ir.Shape(shape)
        nodes.append(node)
        return output

    def constant(array: Array) -> ir.Value:
        return add_constant(graph, ir.tensor(array), fresh_name(graph, f"{name}.constant"))

    off_on, last = constant(np.array([0, 1], np.float32)), constant(np.array([-1], np.int64))
    floats, integers = ir.DataType.FLOAT, ir.DataType.INT64
    keeps = are_ids and len(leading) > 1 and leading[-1] == 1
    if keeps:
        equal = add("Equal", "equal", [*leading[:-1], E], ir.DataType.BOOL, value, constant(np.arange(E)))
        scores = add("Cast", "scores", [*leading[:-1], E], floats, equal, to=floats.value)
    elif are_ids:
        scores = add("OneHot", "scores", [*leading, E], floats, value, constant(np.array(E)), off_on, axis=-1)
    else:
        numbers = add("Cast", "numbers", [*leading, E], floats, value, to=floats.value)
        total = add("ReduceSum", "total", [*leading, 1], floats, numbers, last, keepdims=1)
        rest = add("Sub", "rest", [*leading, 1], floats, constant(np.array(1, np.float32)), total)
        scores = add("Concat", "scores", [*leading, E + 1], floats, numbers, rest, axis=-1)
    chosen = result = add("ArgMax", "chosen", leading, integers, scores, axis=-1, keepdims=int(keeps))
    selection = nodes[-1]
    if not are_ids:
        hot = add("OneHot", "hot", [*leading, E + 1], floats, chosen, constant(np.array(E + 1)), off_on, axis=-1)
        kept = add("Slice", "kept", [*leading, E], floats, hot, constant(np.array([0])), constant(np.array([E])), last)
        result = add("Cast", "flags", [*leading, E], value.dtype, kept, to=value.dtype.value)
    graph.insert_after(maker, nodes)
    for node, index in choice.uses:
        node.replace_input_with(index, result)
    return Selected(choice, scores, selection, tuple(nodes))


def _are_flags(dataflow: DataFlow, value: ir.Value) -> bool:
    """Whether a value is always 0 or 1."""
    node = value.producer()
    while is_op(node, "Cast") and node.inputs[0] is not None and value.dtype != ir.DataType.BOOL:
        value = node.inputs[0]
        node = value.producer()
    if value.dtype == ir.DataType.BOOL:
        return True
    return value.dtype is not None and value.dtype.is_integer() and _within(_bounds(dataflow, value), UNIT)


def _within(inner: Interval, outer: Interval) -> bool:
    return bool(inner.low >= outer.low and inner.high <= outer.high)


def _bounds(dataflow: DataFlow, value: ir.Value) -> Interval:
    """Bounds of a value for any result of the router's product."""

    def numbers(value: ir.Value) -> Array | None:
        small = dataflow.constant(value) and np.prod(dataflow.shape(value), dtype=np.int64) <= MOST_BOUNDS
        return dataflow.array(value) if small else None

    nodes = dataflow.between([value], lambda v: dataflow.constant(v) or is_contraction(v.producer()))
    return intervals(nodes, {}, numbers)[value].whole if nodes else Interval()
