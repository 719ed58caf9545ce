"""Nodes and constants of a model after the import or after a pass, with their texts."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import onnx_ir as ir

from moec.common.names import node_name, operator_name
from moec.ir.graphs import nested_graphs, read_values
from moec.ir.printer import print_parts, print_type
from moec.ir.text import parse_model


@dataclasses.dataclass(frozen=True)
class ModelNode:
    """A node of the outermost graph.

    ``name``: as kernels list it (:func:`moec.common.names.node_name`). ``inputs`` and ``outputs``: names of values,
    empty for a missing one. ``captured``: outside values that its bodies read. ``inner``: nodes in its bodies.
    """

    name: str
    operator: str
    outputs: tuple[str, ...]
    inputs: tuple[str, ...]
    captured: tuple[str, ...]
    inner: frozenset[str]
    text: str

    @property
    def read(self) -> tuple[str, ...]:
        """The values that the node reads, each once."""
        return tuple(dict.fromkeys(name for name in (*self.inputs, *self.captured) if name))


@dataclasses.dataclass(frozen=True)
class ModelNodes:
    """A model. ``constants``: their texts. ``types``: of all named values. ``results``: names of the outputs."""

    constants: list[str]
    nodes: list[ModelNode]
    types: dict[str, str]
    results: frozenset[str]

    @functools.cached_property
    def needed(self) -> dict[str, ModelNode]:
        """The nodes that a result needs, by name and in order."""
        values, kept = set(self.results), list[ModelNode]()
        for node in reversed(self.nodes):
            if not values.isdisjoint(node.outputs):
                kept.append(node)
                values.update(node.read)
        return {node.name: node for node in reversed(kept)}


def read_model(text: str) -> ModelNodes:
    """Read the nodes of a model from its text. Raises MoecError where it cannot be read."""
    graph = parse_model(text).graph
    constants, texts = print_parts(graph)
    return ModelNodes(
        [line.rstrip(",") for line in constants],
        [_node(node, own) for node, own in zip(graph, texts, strict=True)],
        {str(value.name): print_type(value) for value in _values(graph)},
        frozenset(str(value.name) for value in graph.outputs),
    )


def _node(node: ir.Node, text: str) -> ModelNode:
    inputs = tuple("" if value is None else str(value.name) for value in node.inputs)
    captured = dict.fromkeys(str(value.name) for value in read_values(node))
    inner = (node_name(each) for graph in nested_graphs(node) for each in graph.all_nodes())
    return ModelNode(
        node_name(node),
        operator_name(node),
        tuple(value.name or "" for value in node.outputs),
        inputs,
        tuple(name for name in captured if name not in inputs),
        frozenset(inner),
        text,
    )


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from (value for value in node.outputs if value.name)
