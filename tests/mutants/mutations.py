"""Changes to a model, each small and each chosen by a random generator: what editors, exporters and attackers do.

A mutation changes a ModelProto in place; it may leave it as it was where it finds nothing to change.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, defs, helper

Mutation = Callable[[ModelProto, random.Random], None]
MUTATIONS: dict[str, Mutation] = {}

WHOLE_NUMBERS = (-(2**63), -(2**31) - 1, -(2**31), -129, -7, -3, -2, -1, 0, 1, 2, 3, 5, 8, 64, 1000, 2**16, 2**31 - 1)
WHOLE_NUMBERS += (2**31, 2**32, 2**40, 2**62, 2**63 - 1)
FLOATS = (float("nan"), float("inf"), float("-inf"), -1.0, -0.0, 0.0, 1e-38, 0.5, 1.0, 2.5, 3e38)
TEXTS = ("", "SAME_UPPER", "wrap", "reflect", "tanh", "ij,jk->ik", "i" * 300, "\N{SNOWMAN}", "float", "linear")
DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft", "moec", "own", "ai.onnx.preview.training")


def mutation(change: Mutation) -> Mutation:
    MUTATIONS[change.__name__] = change
    return change


def graphs(model: ModelProto) -> Iterator[GraphProto]:
    """The graph and the graphs inside its nodes."""
    pending = [model.graph]
    while pending:
        graph = pending.pop()
        yield graph
        pending += [
            attribute.g for node in graph.node for attribute in node.attribute if attribute.type == AttributeProto.GRAPH
        ]


def lists_of_nodes(model: ModelProto) -> list[list[NodeProto]]:
    lists = [graph.node for graph in graphs(model)] + [function.node for function in model.functions]
    return [nodes for nodes in lists if nodes]  # type: ignore[misc]


def some_nodes(model: ModelProto, rng: random.Random) -> list[NodeProto]:
    lists = lists_of_nodes(model)
    return rng.choice(lists) if lists else []


def some_node(model: ModelProto, rng: random.Random) -> NodeProto:
    nodes = some_nodes(model, rng)
    return rng.choice(nodes) if nodes else NodeProto()


def some_name(model: ModelProto, rng: random.Random) -> str:
    names = [name for nodes in lists_of_nodes(model) for node in nodes for name in (*node.input, *node.output)]
    names += [value.name for value in (*model.graph.input, *model.graph.initializer)]
    return rng.choice([*names, "", "absent"])


def some_tensor(model: ModelProto, rng: random.Random) -> TensorProto:
    tensors = list(model.graph.initializer)
    tensors += [
        attribute.t
        for nodes in lists_of_nodes(model)
        for node in nodes
        for attribute in node.attribute
        if attribute.HasField("t")
    ]
    return rng.choice(tensors) if tensors else TensorProto()


def some_value(model: ModelProto, rng: random.Random) -> ValueInfoProto:
    values = [value for graph in graphs(model) for value in (*graph.input, *graph.output, *graph.value_info)]
    return rng.choice(values) if values else ValueInfoProto()


# --- edges and nodes -------------------------------------------------------------------------------------------------


@mutation
def rename_input(model: ModelProto, rng: random.Random) -> None:
    node = some_node(model, rng)
    if node.input:
        node.input[rng.randrange(len(node.input))] = some_name(model, rng)


@mutation
def rename_output(model: ModelProto, rng: random.Random) -> None:
    node = some_node(model, rng)
    if node.output:
        node.output[rng.randrange(len(node.output))] = some_name(model, rng)


@mutation
def drop_input(model: ModelProto, rng: random.Random) -> None:
    node = some_node(model, rng)
    if node.input:
        del node.input[rng.randrange(len(node.input))]


@mutation
def add_input(model: ModelProto, rng: random.Random) -> None:
    node = some_node(model, rng)
    node.input.insert(rng.randint(0, len(node.input)), some_name(model, rng))


@mutation
def swap_inputs(model: ModelProto, rng: random.Random) -> None:
    node = some_node(model, rng)
    names = list(node.input)
    rng.shuffle(names)
    node.input[:] = names


@mutation
def change_number_of_outputs(model: ModelProto, rng: random.Random) -> None:
    node = some_node(model, rng)
    if node.output and rng.random() < 0.5:
        del node.output[-1]
    else:
        node.output.append(rng.choice(["", "more", some_name(model, rng)]))


@mutation
def drop_node(model: ModelProto, rng: random.Random) -> None:
    nodes = some_nodes(model, rng)
    if nodes:
        del nodes[rng.randrange(len(nodes))]


@mutation
def repeat_node(model: ModelProto, rng: random.Random) -> None:
    nodes = some_nodes(model, rng)
    if nodes:
        nodes.append(rng.choice(nodes))


@mutation
def reorder_nodes(model: ModelProto, rng: random.Random) -> None:
    nodes = some_nodes(model, rng)
    order = list(nodes)
    rng.shuffle(order)
    copies = [NodeProto.FromString(node.SerializeToString()) for node in order]
    del nodes[:]
    nodes.extend(copies)


@mutation
def close_cycle(model: ModelProto, rng: random.Random) -> None:
    nodes = some_nodes(model, rng)
    if not nodes:
        return
    first = rng.randrange(len(nodes))
    later = nodes[rng.randrange(first, len(nodes))]
    if nodes[first].input and later.output:
        nodes[first].input[rng.randrange(len(nodes[first].input))] = rng.choice(later.output)


@mutation
def change_operator(model: ModelProto, rng: random.Random) -> None:
    node = some_node(model, rng)
    node.op_type = rng.choice(sorted({schema.name for schema in defs.get_all_schemas()}))


@mutation
def change_domain(model: ModelProto, rng: random.Random) -> None:
    some_node(model, rng).domain = rng.choice(DOMAINS)


@mutation
def nest(model: ModelProto, rng: random.Random) -> None:
    """A node moves into the branches of an If, many of them deep."""
    nodes = some_nodes(model, rng)
    if not nodes:
        return
    node = rng.choice(nodes)
    for depth in range(rng.choice([1, 2, 8, 25])):  # protobuf itself refuses 30
        names = list(node.output)
        inner = helper.make_graph([node], f"depth{depth}", [], [ValueInfoProto(name=name) for name in names])
        other = inner if depth < 4 else GraphProto(name="empty")
        outer = helper.make_node("If", [some_name(model, rng)], names, then_branch=inner, else_branch=other)
        node.CopyFrom(outer)


# --- attributes ------------------------------------------------------------------------------------------------------


def some_attribute(model: ModelProto, rng: random.Random) -> AttributeProto:
    attributes = [attribute for nodes in lists_of_nodes(model) for node in nodes for attribute in node.attribute]
    return rng.choice(attributes) if attributes else AttributeProto()


@mutation
def change_attribute(model: ModelProto, rng: random.Random) -> None:
    """Another value of the same type, usually an extreme one."""
    attribute = some_attribute(model, rng)
    if attribute.type == AttributeProto.INT:
        attribute.i = rng.choice(WHOLE_NUMBERS)
    elif attribute.type == AttributeProto.FLOAT:
        attribute.f = rng.choice(FLOATS)
    elif attribute.type == AttributeProto.STRING:
        attribute.s = rng.choice(TEXTS).encode()
    elif attribute.type == AttributeProto.INTS:
        values = list(attribute.ints)
        if values and rng.random() < 0.6:
            values[rng.randrange(len(values))] = rng.choice(WHOLE_NUMBERS)
        else:
            values = [rng.choice(WHOLE_NUMBERS) for _ in range(rng.choice([0, 1, 2, 5]))]
        attribute.ints[:] = values
    elif attribute.type == AttributeProto.FLOATS:
        attribute.floats[:] = [rng.choice(FLOATS) for _ in range(rng.choice([0, 1, 3]))]


@mutation
def change_type_of_attribute(model: ModelProto, rng: random.Random) -> None:
    attribute = some_attribute(model, rng)
    value = rng.choice([1, -1, 1.5, "text", [1, 2], [0.5], TensorProto(data_type=1, dims=[1], float_data=[1.0])])
    attribute.CopyFrom(helper.make_attribute(attribute.name or "axis", value))
    if rng.random() < 0.2:
        attribute.type = rng.randint(0, 14)  # type: ignore[assignment]


@mutation
def set_attribute(model: ModelProto, rng: random.Random) -> None:
    """An attribute that the operator has, and the node had not."""
    node = some_node(model, rng)
    try:
        names = sorted(defs.get_schema(node.op_type, domain=node.domain).attributes)
    except defs.SchemaError:
        names = ["axis"]
    if not names:
        return
    name = rng.choice(names)
    for index, attribute in enumerate(node.attribute):
        if attribute.name == name:
            del node.attribute[index]
            break
    value = rng.choice(
        [rng.choice(WHOLE_NUMBERS), rng.choice(FLOATS), rng.choice(TEXTS), [rng.choice(WHOLE_NUMBERS)] * 2]
    )
    node.attribute.append(helper.make_attribute(name, value))


@mutation
def drop_attribute(model: ModelProto, rng: random.Random) -> None:
    node = some_node(model, rng)
    if node.attribute:
        del node.attribute[rng.randrange(len(node.attribute))]


@mutation
def repeat_attribute(model: ModelProto, rng: random.Random) -> None:
    node = some_node(model, rng)
    if node.attribute:
        node.attribute.append(rng.choice(node.attribute))


@mutation
def refer_to_attribute(model: ModelProto, rng: random.Random) -> None:
    attribute = some_attribute(model, rng)
    kind = attribute.type
    attribute.CopyFrom(
        AttributeProto(name=attribute.name or "axis", ref_attr_name=rng.choice(["alpha", "absent"]), type=kind)
    )
