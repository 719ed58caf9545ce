"""Loops that stay loops, made ready to be compiled."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import ClassVar

import onnx_ir as ir

from moec.common.names import node_name
from moec.ir.dialect import REFUSAL_KEY
from moec.ir.graphs import is_op, lift_constants, nested_graphs, outer_values, replace_inside
from moec.ir.weights.stored import constant
from moec.passes.framework.base import Exactness, Report
from moec.passes.graph.edits import replace_node
from moec.passes.shapes.bodies import BodyShapes
from moec.passes.shapes.inference import annotate
from moec.passes.shapes.symbolic import Names

_BODY = (
    "infer-shapes,inline-control-flow,decompose-recurrent,decompose-contrib,expand-functions,inline-control-flow,"
    "prepare-loops"
)
"""The passes that a body needs before a target knows all of its operators."""
_WHERE_IT_RUNS = "or compile for a CPU, which runs it step by step"


@dataclasses.dataclass(frozen=True)
class PrepareLoops:
    """Lets every Loop and Scan that :class:`InlineControlFlow` left say what it reads, and cleans up their bodies.

    1. A value from outside that a body uses, except a constant, becomes a state that no step changes, so that the
       inputs of a node are all that it reads. (A target copies no such state.)
    2. Inputs of a body get the shapes that they have in every step (:mod:`moec.passes.shapes.bodies`).
    3. A body gets the passes that make a graph compilable, as a graph by itself. All others leave it as it is, those
       that look for MoE blocks or round weights, too, which a remark says.

    ::

        (float[N] s, float[N] x, int64 n) => (float[N] y) <bool yes = {1}> {
           y = Loop <body = b (int64 i, bool c, float[N] a) => (bool d, float[N] t) {
              d = Identity (c)
              e = Identity (a)
              t = Add (e, x)
           }> (n, yes, s)
        }
            ->
        (float[N] s, float[N] x, int64 n) => (float[N] y) <bool yes = {1}> {
           y, "x.kept" = Loop <body = b (int64 i, bool c, float[N] a, float[N] "x.inside") => (
              bool d, float[N] t, float[N] "x.outside"
           ) {
              d = Identity (c)
              t = Add (a, "x.inside")
              "x.outside" = Identity ("x.inside")
           }> (n, yes, s, x)
        }
    """

    name: ClassVar[str] = "prepare-loops"
    exactness: ClassVar[Exactness] = "exact"

    def apply(self, model: ir.Model, report: Report) -> bool:
        loops = [node for node in model.graph if is_op(node, "Loop", "Scan")]
        for node in loops:
            closed = _closed(node, {value.name for value in _values(model.graph)})
            _clean_up(closed, model, report)
            if REFUSAL_KEY in closed.metadata_props:
                closed.metadata_props[REFUSAL_KEY] += f"; {_WHERE_IT_RUNS}"
            report.note(
                self.name,
                node_name(closed),
                f"this {closed.op_type} runs step by step; its body is compiled as it is: MoE blocks in it are not "
                "looked for, and weights keep their format",
            )
        if loops:
            lift_constants(model)
        return bool(loops)


def _closed(node: ir.Node, taken: set[str | None]) -> ir.Node:
    """The node, or one in its place whose body reads nothing but its inputs and constants."""
    body = node.attributes["body"].as_graph()
    captured = [value for value in dict.fromkeys(outer_values(body)) if constant(value) is None]
    # The inputs of a node, and of its body, are [trips, going], states, scanned values; a Loop's body makes whether it
    # goes on, too.
    head, scanned = (0, node.attributes.get_int("num_scan_inputs", 0)) if is_op(node, "Scan") else (2, 0)
    end = len(node.inputs) - scanned
    if not captured or len(body.inputs) != len(node.inputs) or end < head:
        return node
    insides = [_like(value, "inside", taken) for value in captured]
    copies = [ir.node("Identity", [value]) for value in insides]
    replace_inside(body, dict(zip(captured, insides, strict=True)))
    body.extend(copies)
    for copy, value in zip(copies, captured, strict=True):
        copy.outputs[0].name, copy.outputs[0].type = _fresh(f"{value.name}.outside", taken), value.type
    body.inputs[end:end] = insides
    behind = end - head + (1 if head else 0)
    body.outputs[behind:behind] = [copy.outputs[0] for copy in copies]
    kept = [_like(value, "kept", taken) for value in captured]
    outputs = [ir.Value(name=value.name, type=value.type, shape=value.shape) for value in node.outputs]
    closed = ir.Node(
        node.domain,
        node.op_type,
        [*node.inputs[:end], *captured, *node.inputs[end:]],
        list(node.attributes.values()),
        outputs=[*outputs[: end - head], *kept, *outputs[end - head :]],
        name=node.name,
        metadata_props=dict(node.metadata_props),
    )
    assert isinstance(node.graph, ir.Graph)
    node.graph.insert_before(node, closed)
    for value in node.outputs:
        value.name = f"{value.name}.open"
    for value, new in zip(node.outputs, outputs, strict=True):
        if value.is_graph_output():
            new.name, value.name = f"{new.name}.closed", new.name
    replace_node(node, outputs)
    return closed


def _clean_up(node: ir.Node, model: ir.Model, report: Report) -> None:
    """Apply the passes to the body, and give its values names that no value outside has."""
    from moec.passes import pipeline

    body = node.attributes["body"].as_graph()
    BodyShapes(Names(model.graph), annotate).declare_inputs(node)
    inside = set(_values(body))
    outside = {value.name for value in _values(model.graph) if value not in inside}
    body.opset_imports.update(model.graph.opset_imports)
    inner = ir.Model(body, ir_version=model.ir_version, functions=list(model.functions.values()))
    with _own_constants(body, outside):
        pipeline.run(inner, pipeline.parse(f"{_BODY},{pipeline.CLEAN_UP},fuse-stored-weights"), report)
    taken = outside | {value.name for value in _values(body)}
    for value in list(_values(body)):
        if value.name in outside:
            value.name = _fresh(str(value.name), taken)


@contextlib.contextmanager
def _own_constants(body: ir.Graph, taken: set[str | None]) -> Iterator[None]:
    """Inside, constants from outside that the body reads are its own, as inference of shapes wants them."""
    own: dict[ir.Value, ir.Value] = {}
    for value in dict.fromkeys(outer_values(body)):
        tensor = constant(value)
        assert tensor is not None, "a closed body takes only constants from outside"
        own[value] = ir.Value(
            name=_fresh(f"{value.name}.inside", taken), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        own[value].shape = ir.Shape(tensor.shape.numpy())
        body.register_initializer(own[value])
    replace_inside(body, own)
    yield
    left = {inner: value for value, inner in own.items() if body.initializers.get(str(inner.name)) is inner}
    replace_inside(body, left)
    for inner in left:
        del body.initializers[str(inner.name)]


def _like(value: ir.Value, where: str, taken: set[str | None]) -> ir.Value:
    return ir.Value(name=_fresh(f"{value.name}.{where}", taken), type=value.type, shape=value.shape)


def _fresh(wish: str, taken: set[str | None]) -> str:
    name, number = wish, 1
    while name in taken:
        number += 1
        name = f"{wish}_{number}"
    taken.add(name)
    return name


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    """All values that a graph, and bodies in it, define."""
    yield from (*graph.inputs, *graph.initializers.values())
    for node in graph:
        yield from node.outputs
        for body in nested_graphs(node):
            yield from _values(body)
