"""Routing and experts as two operators, for a table of ids to stand between them."""

from __future__ import annotations

import onnx_ir as ir

from moec.ir import dialect
from moec.ir.dialect import EXPERT_WEIGHTS, ExpertsSpec, RouteSpec
from moec.passes.graph.edits import fresh_name, replace_value


def with_route(graph: ir.Graph, node: ir.Node) -> ir.Node:
    """The ``moec.Experts`` node that a ``moec.MoE`` node becomes, with a ``moec.Route`` in front of it: the opposite of
    fuse-route-dispatch. An Experts node is given back."""
    if dialect.is_moec(node, "Experts"):
        return node
    inputs, old = dialect.inputs_of(node), node.outputs[0]
    routing = dialect.spec_of(node, RouteSpec)
    router = {name: inputs[name] for name in ("logits", "correction_bias")}
    route = dialect.make_node("Route", router, routing)
    logits = inputs["logits"]
    assert logits is not None
    shape = None if logits.shape is None else ir.Shape([logits.shape[0], routing.k])
    for output, what, dtype in zip(
        route.outputs, ("weights", "experts"), (logits.dtype, ir.DataType.INT32), strict=True
    ):
        output.name, output.shape = fresh_name(graph, f"{old.name}_{what}"), shape
        output.type = None if dtype is None else ir.TensorType(dtype)
    chosen = {"weights": route.outputs[0], "experts": route.outputs[1]}
    operands = {name: inputs[name] for name in EXPERT_WEIGHTS}
    experts = dialect.make_node(
        "Experts", {"x": inputs["x"], **chosen, **operands}, dialect.spec_of(node, ExpertsSpec), name=node.name
    )
    experts.metadata_props.update(node.metadata_props)
    experts.outputs[0].type, experts.outputs[0].shape = old.type, old.shape
    graph.insert_before(node, [route, experts])
    name = old.name
    if not replace_value(old, experts.outputs[0]):
        raise AssertionError("the output of a new node takes any place")
    old.name, experts.outputs[0].name = fresh_name(graph, f"{name}_replaced"), name
    graph.remove(node, safe=True)
    return experts
