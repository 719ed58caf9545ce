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


def _mutation(mutation: Mutation) -> Mutation:
    MUTATIONS[mutation.__name__] = mutation
    return mutation


def graphs(model: ModelProto) -> Iterator[GraphProto]:
    """The graph and the graphs inside its nodes."""
    pending = [model.graph]
    while pending:
        graph = pending.pop()
        yield graph
        pending += [one.g for node in graph.node for one in node.attribute if one.type == AttributeProto.GRAPH]


def _lists_of_nodes(model: ModelProto) -> list[list[NodeProto]]:
    lists = [graph.node for graph in graphs(model)] + [function.node for function in model.functions]
    return [one for one in lists if one]  # type: ignore[misc]


def _some_nodes(model: ModelProto, rng: random.Random) -> list[NodeProto]:
    lists = _lists_of_nodes(model)
    return rng.choice(lists) if lists else []


def _some_node(model: ModelProto, rng: random.Random) -> NodeProto:
    nodes = _some_nodes(model, rng)
    return rng.choice(nodes) if nodes else NodeProto()


def _some_name(model: ModelProto, rng: random.Random) -> str:
    names = [name for nodes in _lists_of_nodes(model) for node in nodes for name in (*node.input, *node.output)]
    names += [value.name for value in (*model.graph.input, *model.graph.initializer)]
    return rng.choice([*names, "", "absent"])


def _some_tensor(model: ModelProto, rng: random.Random) -> TensorProto:
    tensors = list(model.graph.initializer)
    tensors += [
        one.t for nodes in _lists_of_nodes(model) for node in nodes for one in node.attribute if one.HasField("t")
    ]
    return rng.choice(tensors) if tensors else TensorProto()


def _some_value(model: ModelProto, rng: random.Random) -> ValueInfoProto:
    values = [value for graph in graphs(model) for value in (*graph.input, *graph.output, *graph.value_info)]
    return rng.choice(values) if values else ValueInfoProto()


# --- edges and nodes -------------------------------------------------------------------------------------------------


@_mutation
def rename_input(model: ModelProto, rng: random.Random) -> None:
    node = _some_node(model, rng)
    if node.input:
        node.input[rng.randrange(len(node.input))] = _some_name(model, rng)


@_mutation
def rename_output(model: ModelProto, rng: random.Random) -> None:
    node = _some_node(model, rng)
    if node.output:
        node.output[rng.randrange(len(node.output))] = _some_name(model, rng)


@_mutation
def drop_input(model: ModelProto, rng: random.Random) -> None:
    node = _some_node(model, rng)
    if node.input:
        del node.input[rng.randrange(len(node.input))]


@_mutation
def add_input(model: ModelProto, rng: random.Random) -> None:
    node = _some_node(model, rng)
    node.input.insert(rng.randint(0, len(node.input)), _some_name(model, rng))


@_mutation
def swap_inputs(model: ModelProto, rng: random.Random) -> None:
    node = _some_node(model, rng)
    names = list(node.input)
    rng.shuffle(names)
    node.input[:] = names


@_mutation
def change_number_of_outputs(model: ModelProto, rng: random.Random) -> None:
    node = _some_node(model, rng)
    if node.output and rng.random() < 0.5:
        del node.output[-1]
    else:
        node.output.append(rng.choice(["", "more", _some_name(model, rng)]))


@_mutation
def drop_node(model: ModelProto, rng: random.Random) -> None:
    nodes = _some_nodes(model, rng)
    if nodes:
        del nodes[rng.randrange(len(nodes))]


@_mutation
def repeat_node(model: ModelProto, rng: random.Random) -> None:
    nodes = _some_nodes(model, rng)
    if nodes:
        nodes.append(rng.choice(nodes))


@_mutation
def reorder_nodes(model: ModelProto, rng: random.Random) -> None:
    nodes = _some_nodes(model, rng)
    order = list(nodes)
    rng.shuffle(order)
    copies = [NodeProto.FromString(node.SerializeToString()) for node in order]
    del nodes[:]
    nodes.extend(copies)


@_mutation
def close_cycle(model: ModelProto, rng: random.Random) -> None:
    nodes = _some_nodes(model, rng)
    if not nodes:
        return
    first = rng.randrange(len(nodes))
    later = nodes[rng.randrange(first, len(nodes))]
    if nodes[first].input and later.output:
        nodes[first].input[rng.randrange(len(nodes[first].input))] = rng.choice(later.output)


@_mutation
def change_operator(model: ModelProto, rng: random.Random) -> None:
    node = _some_node(model, rng)
    node.op_type = rng.choice(sorted({schema.name for schema in defs.get_all_schemas()}))


@_mutation
def change_domain(model: ModelProto, rng: random.Random) -> None:
    _some_node(model, rng).domain = rng.choice(DOMAINS)


@_mutation
def nest(model: ModelProto, rng: random.Random) -> None:
    """A node moves into the branches of an If, many of them deep."""
    nodes = _some_nodes(model, rng)
    if not nodes:
        return
    node = rng.choice(nodes)
    for depth in range(rng.choice([1, 2, 8, 25])):  # protobuf itself refuses 30
        names = list(node.output)
        inner = helper.make_graph([node], f"depth{depth}", [], [ValueInfoProto(name=name) for name in names])
        other = inner if depth < 4 else GraphProto(name="empty")
        outer = helper.make_node("If", [_some_name(model, rng)], names, then_branch=inner, else_branch=other)
        node.CopyFrom(outer)


# --- attributes ------------------------------------------------------------------------------------------------------


def _some_attribute(model: ModelProto, rng: random.Random) -> AttributeProto:
    attributes = [one for nodes in _lists_of_nodes(model) for node in nodes for one in node.attribute]
    return rng.choice(attributes) if attributes else AttributeProto()


@_mutation
def change_attribute(model: ModelProto, rng: random.Random) -> None:
    """Another value of the same type, usually an extreme one."""
    one = _some_attribute(model, rng)
    if one.type == AttributeProto.INT:
        one.i = rng.choice(WHOLE_NUMBERS)
    elif one.type == AttributeProto.FLOAT:
        one.f = rng.choice(FLOATS)
    elif one.type == AttributeProto.STRING:
        one.s = rng.choice(TEXTS).encode()
    elif one.type == AttributeProto.INTS:
        values = list(one.ints)
        if values and rng.random() < 0.6:
            values[rng.randrange(len(values))] = rng.choice(WHOLE_NUMBERS)
        else:
            values = [rng.choice(WHOLE_NUMBERS) for _ in range(rng.choice([0, 1, 2, 5]))]
        one.ints[:] = values
    elif one.type == AttributeProto.FLOATS:
        one.floats[:] = [rng.choice(FLOATS) for _ in range(rng.choice([0, 1, 3]))]


@_mutation
def change_type_of_attribute(model: ModelProto, rng: random.Random) -> None:
    one = _some_attribute(model, rng)
    value = rng.choice([1, -1, 1.5, "text", [1, 2], [0.5], TensorProto(data_type=1, dims=[1], float_data=[1.0])])
    one.CopyFrom(helper.make_attribute(one.name or "axis", value))
    if rng.random() < 0.2:
        one.type = rng.randint(0, 14)  # type: ignore[assignment]


@_mutation
def set_attribute(model: ModelProto, rng: random.Random) -> None:
    """An attribute that the operator has, and the node had not."""
    node = _some_node(model, rng)
    try:
        names = sorted(defs.get_schema(node.op_type, domain=node.domain).attributes)
    except defs.SchemaError:
        names = ["axis"]
    if not names:
        return
    name = rng.choice(names)
    for index, one in enumerate(node.attribute):
        if one.name == name:
            del node.attribute[index]
            break
    value = rng.choice(
        [rng.choice(WHOLE_NUMBERS), rng.choice(FLOATS), rng.choice(TEXTS), [rng.choice(WHOLE_NUMBERS)] * 2]
    )
    node.attribute.append(helper.make_attribute(name, value))


@_mutation
def drop_attribute(model: ModelProto, rng: random.Random) -> None:
    node = _some_node(model, rng)
    if node.attribute:
        del node.attribute[rng.randrange(len(node.attribute))]


@_mutation
def repeat_attribute(model: ModelProto, rng: random.Random) -> None:
    node = _some_node(model, rng)
    if node.attribute:
        node.attribute.append(rng.choice(node.attribute))


@_mutation
def refer_to_attribute(model: ModelProto, rng: random.Random) -> None:
    one = _some_attribute(model, rng)
    kind = one.type
    one.CopyFrom(AttributeProto(name=one.name or "axis", ref_attr_name=rng.choice(["alpha", "absent"]), type=kind))


# --- types, shapes and numbers ---------------------------------------------------------------------------------------


@_mutation
def change_size(model: ModelProto, rng: random.Random) -> None:
    dims = _some_value(model, rng).type.tensor_type.shape.dim
    if not dims:
        return
    dim = rng.choice(dims)
    if rng.random() < 0.3:
        dim.dim_param = rng.choice(
            ["T", "a-b", "2*T", "T/0", "", "1", "(" * 60, "T" * 5000, "__import__('os')", "T**T**T"]
        )
    else:
        dim.dim_value = rng.choice(WHOLE_NUMBERS)


@_mutation
def change_rank(model: ModelProto, rng: random.Random) -> None:
    shape = _some_value(model, rng).type.tensor_type.shape
    if shape.dim and rng.random() < 0.5:
        del shape.dim[rng.randrange(len(shape.dim))]
    else:
        for _ in range(rng.choice([1, 1, 2, 30, 70])):
            shape.dim.add(dim_value=rng.choice([1, 2, 3]))


@_mutation
def change_type(model: ModelProto, rng: random.Random) -> None:
    _some_value(model, rng).type.tensor_type.elem_type = rng.randint(0, 30)


@_mutation
def forget_type(model: ModelProto, rng: random.Random) -> None:
    _some_value(model, rng).ClearField("type")


@_mutation
def change_dims_of_tensor(model: ModelProto, rng: random.Random) -> None:
    tensor = _some_tensor(model, rng)
    choices = [list(reversed(tensor.dims)), [*tensor.dims, 1], [1, *tensor.dims], list(tensor.dims[1:])]
    choices += [[*tensor.dims[:-1], rng.choice(WHOLE_NUMBERS)], [1] * 40]
    tensor.dims[:] = rng.choice(choices)


@_mutation
def change_type_of_tensor(model: ModelProto, rng: random.Random) -> None:
    _some_tensor(model, rng).data_type = rng.randint(0, 30)


@_mutation
def cut_tensor(model: ModelProto, rng: random.Random) -> None:
    tensor = _some_tensor(model, rng)
    tensor.raw_data = tensor.raw_data[: rng.randint(0, len(tensor.raw_data))] + bytes(rng.choice([0, 0, 1, 8]))


@_mutation
def change_numbers_of_tensor(model: ModelProto, rng: random.Random) -> None:
    """Extremes among axes, sizes and indices (and, as bits, among weights)."""
    tensor = _some_tensor(model, rng)
    data = bytearray(tensor.raw_data)
    if len(data) < 8:
        return
    position = rng.randrange(len(data) // 8) * 8
    data[position : position + 8] = (rng.choice(WHOLE_NUMBERS) % 2**64).to_bytes(8, "little")
    tensor.raw_data = bytes(data)


@_mutation
def change_external_data(model: ModelProto, rng: random.Random) -> None:
    tensor = _some_tensor(model, rng)
    if not tensor.external_data:
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="data.bin")
        return
    entry = rng.choice(tensor.external_data)
    entry.value = rng.choice(["", "0", "4", "-1", "1e3", "9" * 30, "../data.bin", "/dev/zero", "model.onnx", ".", "\0"])


@_mutation
def make_sparse(model: ModelProto, rng: random.Random) -> None:
    sparse = model.graph.sparse_initializer.add()
    sparse.values.CopyFrom(_some_tensor(model, rng))
    sparse.dims[:] = [rng.choice(WHOLE_NUMBERS)]


# --- the model -------------------------------------------------------------------------------------------------------


@_mutation
def change_opset(model: ModelProto, rng: random.Random) -> None:
    if model.opset_import:
        rng.choice(model.opset_import).version = rng.choice([-1, 0, *range(1, 31), 2**40])


@_mutation
def change_imports(model: ModelProto, rng: random.Random) -> None:
    if model.opset_import and rng.random() < 0.4:
        del model.opset_import[rng.randrange(len(model.opset_import))]
    else:
        model.opset_import.add(domain=rng.choice(DOMAINS), version=rng.choice([1, 13, 18, 24]))


@_mutation
def change_ir_version(model: ModelProto, rng: random.Random) -> None:
    model.ir_version = rng.choice([-1, 0, 1, 3, 4, 8, 13, 2**40])


@_mutation
def drop_initializer(model: ModelProto, rng: random.Random) -> None:
    if model.graph.initializer:
        del model.graph.initializer[rng.randrange(len(model.graph.initializer))]


@_mutation
def repeat_initializer(model: ModelProto, rng: random.Random) -> None:
    if model.graph.initializer:
        copy = model.graph.initializer.add()
        copy.CopyFrom(_some_tensor(model, rng))
        copy.name = _some_name(model, rng)


@_mutation
def rename_graph_value(model: ModelProto, rng: random.Random) -> None:
    _some_value(model, rng).name = _some_name(model, rng)


@_mutation
def change_outputs_of_graph(model: ModelProto, rng: random.Random) -> None:
    graph = rng.choice(list(graphs(model)))
    if graph.output and rng.random() < 0.5:
        graph.output.append(rng.choice(graph.output))
    else:
        graph.output.append(ValueInfoProto(name=_some_name(model, rng)))


@_mutation
def call_itself(model: ModelProto, rng: random.Random) -> None:
    """A function calls itself, or another twice as often as before."""
    if not model.functions:
        return
    caller, called = rng.choice(model.functions), rng.choice(model.functions)
    caller.node.append(helper.make_node(called.name, list(caller.input)[:1], ["again"], domain=called.domain))


@_mutation
def change_function(model: ModelProto, rng: random.Random) -> None:
    if not model.functions:
        return
    function = rng.choice(model.functions)
    kind = rng.randrange(5)
    if kind == 0:
        function.name = rng.choice(["Half", "Relu", ""])
    elif kind == 1:
        function.domain = rng.choice(DOMAINS)
    elif kind == 2:
        function.input.append(_some_name(model, rng))
    elif kind == 3:
        function.output.append(rng.choice(["absent", *function.output]))
    elif function.opset_import:
        rng.choice(function.opset_import).version = rng.randint(1, 30)
