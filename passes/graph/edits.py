"""Small tools that several passes share: reading constants and replacing values without changing the model's face."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from moec.ir.graphs import add_constant
from moec.ir.graphs import is_op as is_op


def constant(value: ir.Value | None, limit: int = 1024) -> np.ndarray | None:
    """The data of a constant of at most ``limit`` elements; None for every other value."""
    if value is None or value.const_value is None or value.is_graph_input() or value.const_value.size > limit:
        return None
    return value.const_value.numpy()


def constant_number(value: ir.Value | None) -> float | None:
    """The value of a constant of one element and rank 0 or 1."""
    data = constant(value)
    return float(data.ravel()[0]) if data is not None and data.size == 1 and data.ndim <= 1 else None


def replace_by_tensors(node: ir.Node, tensors: Sequence[ir.TensorProtocol]) -> None:
    """Replace a node, none of whose outputs is a graph output, by initializers that take over the outputs' names."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    names = [output.name for output in node.outputs]
    for output, name, tensor in zip(node.outputs, names, tensors, strict=True):
        output.name = f"{name}_replaced"
        if output.uses():
            output.replace_all_uses_with(add_constant(graph, tensor, str(name)))
    graph.remove(node, safe=True)


def replace_value(old: ir.Value, new: ir.Value) -> bool:
    """Let every user of ``old`` use ``new``; return whether that was possible.

    A graph output keeps its name: when ``old`` is one, ``new`` takes the name over, which it cannot when it is itself
    a graph input, output or constant; then nothing changes.
    """
    if old.is_graph_output():
        if new.producer() is None or new.is_graph_output() or old.graph is not new.graph:
            return False
        graph, name = old.graph, old.name
        assert isinstance(graph, ir.Graph)
        old.name = f"{name}_replaced"
        graph.outputs[:] = [new if output is old else output for output in graph.outputs]
        new.name = name
        new.shape = new.shape if old.shape is None else old.shape
    old.replace_all_uses_with(new)
    return True


def replace_node(node: ir.Node, values: Sequence[ir.Value | None]) -> None:
    """Let the values take the place of the node's outputs, of which further ones are unused, and remove the node."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    for old, new in zip(node.outputs, values, strict=False):
        if new is None or not (old.uses() or old.is_graph_output()):
            continue
        new.type = new.type or old.type
        new.shape = new.shape or old.shape
        if not replace_value(old, new):
            copy = ir.node("Identity", [new])
            graph.insert_before(node, copy)
            replace_value(old, copy.outputs[0])
    graph.remove(node, safe=True)


def value_names(graph: ir.Graph) -> set[str]:
    """All names of values, those inside bodies included."""
    values = [
        *graph.inputs,
        *graph.initializers.values(),
        *(output for node in graph.all_nodes() for output in node.outputs),
    ]
    return {value.name for value in values if value.name}


def fresh_name(graph: ir.Graph, wish: str) -> str:
    """``wish``, or ``wish`` with a number, that no value of the graph has as its name. Reads all names: whoever makes
    names for many nodes takes :class:`FreshNames`."""
    return FreshNames(graph).new(wish)


class FreshNames:
    """Names that no value of a graph has. The graph is read once, at the first name: valid as long as all further names
    that are made by wish come from here."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._numbers: dict[str, int] = {}
        """The number that a wish was given last."""

    @functools.cached_property
    def _taken(self) -> set[str | None]:
        graph = self._graph
        outputs = (value.name for node in graph for value in node.outputs)
        return {*(value.name for value in graph.inputs), *graph.initializers, *outputs}

    def new(self, wish: str) -> str:
        """``wish``, or ``wish`` with a number."""
        name, number = wish, self._numbers.get(wish, 1)
        while name in self._taken:
            number += 1
            name = f"{wish}_{number}"
        self._numbers[wish] = number
        self._taken.add(name)
        return name


def remove_unused(graph: ir.Graph, value: ir.Value) -> None:
    """Remove the nodes that compute a value without a user."""
    if value.uses() or value.is_graph_output() or value.is_graph_input():
        return
    node = value.producer()
    if node is None:
        graph.initializers.pop(str(value.name), None)
        return
    inputs = [operand for operand in node.inputs if operand is not None]
    graph.remove(node, safe=True)
    for operand in inputs:
        remove_unused(graph, operand)
