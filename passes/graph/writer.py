"""Writing the operators that take the place of one node."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from moec.common.names import node_name
from moec.ir.graphs import add_constant


class NotDecomposableError(Exception):
    """A node asks for something that the decomposition of its operator cannot express; the message names it."""


class Writer:
    """Adds nodes in front of ``node``. Names of new values begin with that of the node's first output.

    ``taken`` are all names of values in the graph; new ones are added.
    """

    def __init__(self, node: ir.Node, taken: set[str]) -> None:
        assert isinstance(node.graph, ir.Graph)
        self.graph, self.node = node.graph, node
        self.remarks: list[str] = []
        """Remarks for users about the result of the decomposition."""
        self.taken = taken
        self._prefix = next((output.name for output in node.outputs if output.name), None) or node_name(node)

    def add(self, op_type: str, *inputs: ir.Value | None, label: str = "", **attributes: Any) -> ir.Value:
        """A node of the ONNX domain with one output."""
        return self.insert(ir.node(op_type, inputs, attributes=attributes), label or op_type)

    def insert(self, node: ir.Node, *labels: str) -> ir.Value:
        """A finished node with one label per output; returns its first output."""
        for output, label in zip(node.outputs, labels, strict=True):
            output.name = self.name(label)
        node.name = node.name or f"{node_name(self.node)}.{labels[0]}"
        self.graph.insert_before(self.node, node)
        return node.outputs[0]

    def numbers(self, *numbers: int) -> ir.Value:
        """A constant vector of integers: axes, sizes, shapes."""
        return self.constant(np.array(numbers, np.int64), "numbers")

    def constant(self, array: np.ndarray, label: str) -> ir.Value:
        return self.weight(ir.tensor(array), label)

    def weight(self, tensor: ir.TensorProtocol, label: str) -> ir.Value:
        return add_constant(self.graph, tensor, self.name(label))

    def name(self, label: str) -> str:
        """A new name in the graph."""
        wish = name = f"{self._prefix}.{label}"
        number = 1
        while name in self.taken:
            number += 1
            name = f"{wish}_{number}"
        self.taken.add(name)
        return name

    def input(self, position: int) -> ir.Value | None:
        """An input of the node to replace; None where it is absent."""
        return self.node.inputs[position] if position < len(self.node.inputs) else None

    def required(self, position: int, name: str) -> ir.Value:
        """Raises NotDecomposableError where the input is absent."""
        value = self.input(position)
        if value is None:
            raise NotDecomposableError(f"input {position} ({name}) is missing")
        return value

    def attribute(self, name: str, default: Any) -> Any:
        attribute = self.node.attributes.get(name)
        return default if attribute is None else attribute.value

    def refuse_attributes(self, **harmless: Any) -> None:
        """Raises NotDecomposableError for an attribute with a value other than the one that means nothing."""
        for name, value in harmless.items():
            actual = self.attribute(name, value)
            if actual != value:
                raise NotDecomposableError(f"attribute {name} is {actual!r}; expected {value!r}")

    def refuse_inputs(self, **positions: int) -> None:
        for name, position in positions.items():
            if self.input(position) is not None:
                raise NotDecomposableError(f"input {position} ({name}) is not supported; expected it to be absent")

    def is_used(self, position: int) -> bool:
        """Whether anybody reads this output of the node."""
        output = self.node.outputs[position] if position < len(self.node.outputs) else None
        return output is not None and bool(output.uses() or output.is_graph_output())

    def refuse_outputs(self, *positions: int) -> None:
        for position in positions:
            if self.is_used(position):
                raise NotDecomposableError(f"output {position} is used; expected it to be unused")


def rank_of(value: ir.Value, name: str) -> int:
    """Raises NotDecomposableError where nothing is known about the shape."""
    if value.shape is None:
        raise NotDecomposableError(f"the rank of {name} is not known")
    return len(value.shape)


def width_of(value: ir.Value, name: str) -> int:
    """The size of the last axis. Raises NotDecomposableError where it is not a known number."""
    size = value.shape[-1] if value.shape is not None and len(value.shape) else None
    if not isinstance(size, int):
        raise NotDecomposableError(f"the last axis of {name} is not a known number")
    return size


def dtype_of(value: ir.Value, name: str) -> ir.DataType:
    """Raises NotDecomposableError where the type is not known."""
    if value.dtype is None:
        raise NotDecomposableError(f"the type of {name} is not known")
    return value.dtype


def as_float32(write: Writer, value: ir.Value) -> ir.Value:
    """The value in float32, which holds every number of the narrower types."""
    return value if value.dtype == ir.DataType.FLOAT else write.add("Cast", value, to=ir.DataType.FLOAT)
