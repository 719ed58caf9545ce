"""Tools to write the nodes of a model otherwise."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
import onnx
import onnx_ir as ir

from moec.passes.graph.edits import replace_node

Array = np.ndarray[Any, Any]
Operand = ir.Value | Array | float | None
Item = TypeVar("Item")


class Writer:
    """Adds nodes in front of one, and the constants that they take."""

    def __init__(self, model: ir.Model, before: ir.Node | None = None) -> None:
        self.model, self.graph, self._before = model, model.graph, before
        taken = {value.name for value in all_values(model)}
        self._names = (name for name in map("w{}".format, itertools.count()) if name not in taken)

    def op(self, op_type: str, *inputs: Operand, domain: str = "", **attributes: Any) -> ir.Value:
        """The result of a new node; numbers and arrays among its inputs become constants."""
        return self.ops(op_type, 1, *inputs, domain=domain, **attributes)[0]

    def ops(
        self, op_type: str, outputs: int, *inputs: Operand, domain: str = "", **attributes: Any
    ) -> Sequence[ir.Value]:
        values = [value if isinstance(value, ir.Value) or value is None else self.constant(value) for value in inputs]
        node = ir.node(op_type, values, attributes, domain=domain, num_outputs=outputs)
        for value in node.outputs:
            value.name = next(self._names)
        if self._before is None:
            self.graph.append(node)
        else:
            self.graph.insert_before(self._before, node)
        return node.outputs

    def constant(self, data: Array | float) -> ir.Value:
        """An initializer; a Python number is a float32."""
        array = np.asarray(data, None if isinstance(data, np.ndarray) else np.float32)
        name = next(self._names)
        value = ir.Value(
            name=name,
            shape=ir.Shape(array.shape),
            type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
            const_value=ir.tensor(array, name=name),
        )
        self.graph.register_initializer(value)
        return value


def ints(*numbers: int) -> Array:
    return np.array(numbers, np.int64)


def all_values(model: ir.Model) -> Iterable[ir.Value]:
    graph = model.graph
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def nodes(model: ir.Model, *op_types: str, domain: str = "") -> list[ir.Node]:
    return [node for node in model.graph if node.domain == domain and node.op_type in op_types]


def some(random: np.random.Generator, items: Iterable[Item]) -> list[Item]:
    """One of the items, all, or any number in between; none where there are none."""
    items = list(items)
    if not items:
        return []
    share = random.choice([0.0, 0.5, 1.0])
    always = int(random.integers(len(items)))
    return [item for place, item in enumerate(items) if place == always or random.random() < share]


def array_of(value: ir.Value | None) -> Array | None:
    """The elements of a constant: of an initializer or of a Constant node."""
    if value is None or value.is_graph_input():
        return None
    if value.const_value is not None:
        return value.const_value.numpy()
    node = value.producer()
    if node is None or node.op_type != "Constant" or "value" not in node.attributes:
        return None
    return node.attributes["value"].as_tensor().numpy()


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    result = node.attributes.get(name)
    return default if result is None else result.value


def substitute(node: ir.Node, *values: ir.Value | None) -> None:
    """Let the values take the place of the node's outputs; outputs of the graph keep their names."""
    replace_node(node, values)


def detour(model: ir.Model, value: ir.Value, way: Callable[[Writer, ir.Value], ir.Value]) -> None:
    """Let all users of a computed value or a constant use ``way(writer, value)`` of it."""
    users, node = list(value.uses()), value.producer()
    following = list(model.graph)
    place = 0 if node is None else following.index(node) + 1
    new = way(Writer(model, following[place] if place < len(following) else None), value)
    if value.is_graph_output():
        name = value.name
        model.graph.outputs[:] = [new if output is value else output for output in model.graph.outputs]
        new.type, new.shape = value.type, value.shape
        value.name, new.name = new.name, name
    for user, place in users:
        user.replace_input_with(place, new)


def with_types(model: ir.Model) -> ir.Model:
    """A copy of the model with types and shapes of its values as far as ONNX's inference finds them."""
    return ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(model), data_prop=True))


def rank(value: ir.Value | None) -> int | None:
    return None if value is None or value.shape is None else len(value.shape)


def is_float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype is not None and value.dtype == ir.DataType.FLOAT


def remove_unused(model: ir.Model) -> None:
    """Without nodes and constants that nothing uses."""
    for node in reversed(list(model.graph)):
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            model.graph.remove(node, safe=True)
    for name in [name for name, value in model.graph.initializers.items() if not value.uses()]:
        if not model.graph.initializers[name].is_graph_output():
            del model.graph.initializers[name]
