"""Changes to types, shapes, numbers, functions and what else is said of a model."""

from __future__ import annotations

import random

from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from .mutations import (
    DOMAINS,
    WHOLE_NUMBERS,
    graphs,
    mutation,
    some_name,
    some_tensor,
    some_value,
)

# --- types, shapes and numbers ---------------------------------------------------------------------------------------


@mutation
def change_size(model: ModelProto, rng: random.Random) -> None:
    dims = some_value(model, rng).type.tensor_type.shape.dim
    if not dims:
        return
    dim = rng.choice(dims)
    if rng.random() < 0.3:
        dim.dim_param = rng.choice(
            ["T", "a-b", "2*T", "T/0", "", "1", "(" * 60, "T" * 5000, "__import__('os')", "T**T**T"]
        )
    else:
        dim.dim_value = rng.choice(WHOLE_NUMBERS)


@mutation
def change_rank(model: ModelProto, rng: random.Random) -> None:
    shape = some_value(model, rng).type.tensor_type.shape
    if shape.dim and rng.random() < 0.5:
        del shape.dim[rng.randrange(len(shape.dim))]
    else:
        for _ in range(rng.choice([1, 1, 2, 30, 70])):
            shape.dim.add(dim_value=rng.choice([1, 2, 3]))


@mutation
def change_type(model: ModelProto, rng: random.Random) -> None:
    some_value(model, rng).type.tensor_type.elem_type = rng.randint(0, 30)


@mutation
def forget_type(model: ModelProto, rng: random.Random) -> None:
    some_value(model, rng).ClearField("type")


@mutation
def change_dims_of_tensor(model: ModelProto, rng: random.Random) -> None:
    tensor = some_tensor(model, rng)
    choices = [list(reversed(tensor.dims)), [*tensor.dims, 1], [1, *tensor.dims], list(tensor.dims[1:])]
    choices += [[*tensor.dims[:-1], rng.choice(WHOLE_NUMBERS)], [1] * 40]
    tensor.dims[:] = rng.choice(choices)


@mutation
def change_type_of_tensor(model: ModelProto, rng: random.Random) -> None:
    some_tensor(model, rng).data_type = rng.randint(0, 30)


@mutation
def cut_tensor(model: ModelProto, rng: random.Random) -> None:
    tensor = some_tensor(model, rng)
    tensor.raw_data = tensor.raw_data[: rng.randint(0, len(tensor.raw_data))] + bytes(rng.choice([0, 0, 1, 8]))


@mutation
def change_numbers_of_tensor(model: ModelProto, rng: random.Random) -> None:
    """Extremes among axes, sizes and indices (and, as bits, among weights)."""
    tensor = some_tensor(model, rng)
    data = bytearray(tensor.raw_data)
    if len(data) < 8:
        return
    position = rng.randrange(len(data) // 8) * 8
    data[position : position + 8] = (rng.choice(WHOLE_NUMBERS) % 2**64).to_bytes(8, "little")
    tensor.raw_data = bytes(data)


@mutation
def change_external_data(model: ModelProto, rng: random.Random) -> None:
    tensor = some_tensor(model, rng)
    if not tensor.external_data:
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="data.bin")
        return
    entry = rng.choice(tensor.external_data)
    entry.value = rng.choice(["", "0", "4", "-1", "1e3", "9" * 30, "../data.bin", "/dev/zero", "model.onnx", ".", "\0"])


@mutation
def make_sparse(model: ModelProto, rng: random.Random) -> None:
    sparse = model.graph.sparse_initializer.add()
    sparse.values.CopyFrom(some_tensor(model, rng))
    sparse.dims[:] = [rng.choice(WHOLE_NUMBERS)]


# --- the model -------------------------------------------------------------------------------------------------------


@mutation
def change_opset(model: ModelProto, rng: random.Random) -> None:
    if model.opset_import:
        rng.choice(model.opset_import).version = rng.choice([-1, 0, *range(1, 31), 2**40])


@mutation
def change_imports(model: ModelProto, rng: random.Random) -> None:
    if model.opset_import and rng.random() < 0.4:
        del model.opset_import[rng.randrange(len(model.opset_import))]
    else:
        model.opset_import.add(domain=rng.choice(DOMAINS), version=rng.choice([1, 13, 18, 24]))


@mutation
def change_ir_version(model: ModelProto, rng: random.Random) -> None:
    model.ir_version = rng.choice([-1, 0, 1, 3, 4, 8, 13, 2**40])


@mutation
def drop_initializer(model: ModelProto, rng: random.Random) -> None:
    if model.graph.initializer:
        del model.graph.initializer[rng.randrange(len(model.graph.initializer))]


@mutation
def repeat_initializer(model: ModelProto, rng: random.Random) -> None:
    if model.graph.initializer:
        copy = model.graph.initializer.add()
        copy.CopyFrom(some_tensor(model, rng))
        copy.name = some_name(model, rng)


@mutation
def rename_graph_value(model: ModelProto, rng: random.Random) -> None:
    some_value(model, rng).name = some_name(model, rng)


@mutation
def change_outputs_of_graph(model: ModelProto, rng: random.Random) -> None:
    graph = rng.choice(list(graphs(model)))
    if graph.output and rng.random() < 0.5:
        graph.output.append(rng.choice(graph.output))
    else:
        graph.output.append(ValueInfoProto(name=some_name(model, rng)))


@mutation
def call_itself(model: ModelProto, rng: random.Random) -> None:
    """A function calls itself, or another twice as often as before."""
    if not model.functions:
        return
    caller, called = rng.choice(model.functions), rng.choice(model.functions)
    caller.node.append(helper.make_node(called.name, list(caller.input)[:1], ["again"], domain=called.domain))


@mutation
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
        function.input.append(some_name(model, rng))
    elif kind == 3:
        function.output.append(rng.choice(["absent", *function.output]))
    elif function.opset_import:
        rng.choice(function.opset_import).version = rng.randint(1, 30)
