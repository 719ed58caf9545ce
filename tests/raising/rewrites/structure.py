"""The graph around the numbers: names, order, constants, functions."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper

from ..edit import Writer, array_of, nodes, some
from ..registry import rewrite


@rewrite
def names_shuffled(model: ir.Model, random: np.random.Generator) -> ir.Model | None:
    kept = {value.name for value in (*model.graph.inputs, *model.graph.outputs)}
    values = [*model.graph.initializers.values(), *(value for node in model.graph for value in node.outputs)]
    own = [value for value in values if value.name not in kept]
    for place, value in zip(random.permutation(len(own)), own, strict=True):
        value.name = f"renamed_{place}_{random.integers(1 << 30)}"
    for node in model.graph:
        node.name = None
    return model


@rewrite
def nodes_reordered(model: ir.Model, random: np.random.Generator) -> ir.Model | None:
    """Another topological order of the nodes."""
    graph, done, order = model.graph, set[ir.Node](), []
    waiting = list(graph)
    needed = {node: {p for value in _read(node) if (p := value.producer()) in waiting} for node in waiting}
    while waiting:
        ready = [node for node in waiting if done.issuperset(needed[node])]
        node = ready[random.integers(len(ready))]
        order.append(node)
        done.add(node)
        waiting.remove(node)
    if order == list(graph):
        return None
    graph.remove(order)
    graph.extend(order)
    return model


def _read(node: ir.Node) -> Iterator[ir.Value]:
    """The values that a node reads, also in its branches."""
    yield from (value for value in node.inputs if value is not None)
    for attribute in node.attributes.values():
        for inner in attribute.as_graph() if attribute.type == ir.AttributeType.GRAPH else ():
            yield from _read(inner)


@rewrite
def constants_as_nodes(model: ir.Model, random: np.random.Generator) -> ir.Model | None:
    chosen = some(random, [value for value in model.graph.initializers.values() if value.uses()])
    for value in chosen:
        tensor = ir.tensor(array_of(value))  # type: ignore[arg-type]
        new = Writer(model, next(iter(model.graph))).op("Constant", value=tensor)
        for user, place in list(value.uses()):
            user.replace_input_with(place, new)
    return model if chosen else None


@rewrite
def shapes_dropped(model: ir.Model, random: np.random.Generator) -> ir.Model | None:
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = value.type = None
    return model


@rewrite
def subgraph_into_a_function(model: ir.Model, random: np.random.Generator) -> ir.Model | None:
    """Neighbours in the order of the graph become a call of a local function."""
    proto = ir.to_proto(model)
    every = list(proto.graph.node)
    if len(every) < 2:
        return None
    start = int(random.integers(len(every) - 1))
    end = int(random.integers(start + 1, min(start + 9, len(every)))) + 1
    inside, outside = every[start:end], [*list(model.graph)[:start], *list(model.graph)[end:]]
    if any(node.domain.startswith("local") or node.op_type == "If" for node in inside):
        return None  # no function of functions, nor branches, which use values from outside
    built = {name for node in inside for name in node.output}
    taken = dict.fromkeys(name for node in inside for name in node.input if name and name not in built)
    expected = {value.name for node in outside for value in _read(node)} | {value.name for value in proto.graph.output}
    produced = [name for node in inside for name in node.output if name in expected]
    name = f"part_{len(proto.functions)}"
    proto.functions.append(helper.make_function("local", name, list(taken), produced, inside, proto.opset_import))
    call = helper.make_node(name, list(taken), produced, domain="local")
    del proto.graph.node[:]
    proto.graph.node.extend([*every[:start], call, *every[end:]])
    if not any(opset.domain == "local" for opset in proto.opset_import):
        proto.opset_import.append(helper.make_opsetid("local", 1))
    return ir.from_proto(proto)


@rewrite
def value_computed_twice(model: ir.Model, random: np.random.Generator) -> ir.Model | None:
    """Users of a value no longer share it."""
    shared = [node for node in model.graph if len(node.outputs) == 1 and len(node.outputs[0].uses()) > 1]
    chosen = some(random, shared)
    for node in chosen[:8]:
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        again = Writer(model, node).op(node.op_type, *node.inputs, domain=node.domain, **attributes)
        user, place = list(node.outputs[0].uses())[-1]
        user.replace_input_with(place, again)
    return model if chosen else None


@rewrite
def no_op_if(model: ir.Model, random: np.random.Generator) -> ir.Model | None:
    """A node stands in the branch of an If whose condition is constant."""
    results = [node for node in nodes(model, "Softmax", "Mul", "MatMul", "Sigmoid") if len(node.outputs) == 1]
    if not results:
        return None
    proto = ir.to_proto(model)
    place = list(model.graph).index(results[random.integers(len(results))])
    node = proto.graph.node[place]
    branches = [_branch(node, name) for name in ("then", "else")]
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), f"condition_{place}"))
    call = helper.make_node(
        "If", [f"condition_{place}"], list(node.output), then_branch=branches[0], else_branch=branches[1]
    )
    del proto.graph.node[place]
    proto.graph.node.insert(place, call)
    return ir.from_proto(proto)


def _branch(node: onnx.NodeProto, name: str) -> onnx.GraphProto:
    inner = onnx.NodeProto()
    inner.CopyFrom(node)
    inner.output[:] = [f"{node.output[0]}_{name}"]
    if name == "else":
        inner = helper.make_node("Identity", [node.input[0]], list(inner.output))
    value = helper.make_tensor_value_info(inner.output[0], onnx.TensorProto.FLOAT, None)
    return helper.make_graph([inner], name, [], [value])
