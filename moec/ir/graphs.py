"""Graphs that hold graphs (the bodies of If, Loop and Scan), and constants of graphs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeGuard

import onnx_ir as ir


def is_op(node: ir.Node | None, *op_types: str) -> TypeGuard[ir.Node]:
    """Whether this is a node of the ONNX domain with one of these operators."""
    return node is not None and node.domain == "" and node.op_type in op_types


def add_constant(graph: ir.Graph, tensor: ir.TensorProtocol, name: str) -> ir.Value:
    """A new initializer. ``name`` must be new in the graph."""
    tensor.name = name
    shape, kind = ir.Shape(tensor.shape.numpy()), ir.TensorType(tensor.dtype)
    value = ir.Value(name=name, shape=shape, type=kind, const_value=tensor)
    graph.register_initializer(value)
    return value


def nested_graphs(node: ir.Node) -> Iterator[ir.Graph]:
    """The graphs directly inside a node."""
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def carried_inputs(node: ir.Node) -> Sequence[ir.Value | None]:
    """The values that a Loop or Scan carries before its first step, in the order of its first outputs."""
    if is_op(node, "Scan"):
        return node.inputs[: len(node.inputs) - node.attributes.get_int("num_scan_inputs", 0)]
    return node.inputs[2:]


def outer_values(graph: ir.Graph) -> Iterator[ir.Value]:
    """The values that a body, and those inside it, take from outside, once for each use."""
    inside = {*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)}
    for node in graph:
        yield from (value for value in read_values(node) if value not in inside)
    yield from (value for value in graph.outputs if value not in inside)


def read_values(node: ir.Node) -> Iterator[ir.Value]:
    """The values that a node reads: its inputs, and outside values that its bodies use."""
    yield from (value for value in node.inputs if value is not None)
    for body in nested_graphs(node):
        yield from outer_values(body)


def replace_inside(graph: ir.Graph, instead: Mapping[ir.Value, ir.Value]) -> None:
    """Let the nodes and outputs of a body, and of those inside it, read other values."""
    for node in graph:
        for place, value in enumerate(node.inputs):
            if value in instead:
                node.replace_input_with(place, instead[value])
        for body in nested_graphs(node):
            replace_inside(body, instead)
    if not instead.keys().isdisjoint(graph.outputs):
        graph.outputs[:] = [instead.get(value, value) for value in graph.outputs]


def lift_constants(model: ir.Model) -> None:
    """Make every constant an initializer of the main graph, also those of bodies, except results of a body."""
    from onnx_ir.passes.common import LiftConstantsToInitializersPass

    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    bodies = [graph for graph in model.graphs() if graph is not model.graph]
    if not bodies:
        return
    inside = [value for graph in bodies for value in (*graph.inputs, *graph.initializers.values())]
    computed = [output for node in model.graph.all_nodes() for output in node.outputs]
    taken = {value.name for value in (*model.graph.inputs, *inside, *computed)} | set(model.graph.initializers)
    for graph in bodies:
        for name, value in list(graph.initializers.items()):
            if value.is_graph_input() or value.is_graph_output():
                continue
            del graph.initializers[name]
            number = 0
            while value.name in taken:
                number += 1
                value.name = f"{name}.lifted_{number}"
            taken.add(value.name)
            model.graph.register_initializer(value)
