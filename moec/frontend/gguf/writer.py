"""Writing a graph node by node, at the working opset, in the names of the file's tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from moec.ir.dialect import AnySpec, make_node
from moec.ir.graphs import add_constant
from moec.ir.opsets import OPSET

Array = np.ndarray[Any, Any]


class GraphWriter:
    """Appends nodes to a new graph. Labels become names of values; one that is taken gets a number."""

    def __init__(self, name: str) -> None:
        self.graph = ir.Graph([], [], nodes=[], name=name, opset_imports={"": OPSET, "moec": 1})
        self._taken: dict[str, int] = {}
        self._constants: dict[tuple[Any, ...], ir.Value] = {}

    def input(self, name: str, dtype: ir.DataType, shape: tuple[int | str, ...]) -> ir.Value:
        """A new input of the graph."""
        value = ir.val(self.fresh(name), dtype, shape)
        self.graph.inputs.append(value)
        return value

    def output(self, value: ir.Value, name: str) -> None:
        """Make a computed value an output of the graph, under this name; all outputs are float32."""
        value.name, value.dtype = self.fresh(name), ir.DataType.FLOAT
        self.graph.outputs.append(value)

    def op(self, op_type: str, *inputs: ir.Value | None, label: str = "", **attributes: Any) -> ir.Value:
        """A node of ONNX with one output."""
        return self.add(ir.node(op_type, inputs, attributes=attributes), label or op_type.lower())[0]

    def split(self, value: ir.Value, *sizes: int, axis: int, label: str = "split") -> list[ir.Value]:
        """The parts of a value along an axis."""
        node = ir.node("Split", [value, self.numbers(*sizes)], {"axis": axis}, num_outputs=len(sizes))
        return self.add(node, *(f"{label}.{place}" for place in range(len(sizes))))

    def moec(self, op_type: str, label: str, *specs: AnySpec, **inputs: ir.Value | None) -> list[ir.Value]:
        """The outputs of a node of the dialect."""
        node = make_node(op_type, inputs, *specs)
        return self.add(node, *(label if not place else f"{label}.{place}" for place in range(len(node.outputs))))

    def add(self, node: ir.Node, *labels: str) -> list[ir.Value]:
        """A finished node with one label per output; returns its outputs."""
        for output, label in zip(node.outputs, labels, strict=True):
            output.name = self.fresh(label)
        node.name = node.outputs[0].name
        self.graph.append(node)
        return list(node.outputs)

    def numbers(self, *numbers: int) -> ir.Value:
        """A constant vector of int64: axes, sizes, shapes."""
        return self._shared(np.array(numbers, np.int64), "numbers")

    def whole(self, number: int) -> ir.Value:
        """A constant scalar of int64."""
        return self._shared(np.array(number, np.int64), "number")

    def scalar(self, number: float) -> ir.Value:
        """A constant scalar of float32."""
        return self._shared(np.array(number, np.float32), "number")

    def constant(self, array: Array, label: str) -> ir.Value:
        return self.weight(ir.tensor(array), label)

    def weight(self, tensor: ir.TensorProtocol, label: str) -> ir.Value:
        return add_constant(self.graph, tensor, self.fresh(label))

    def reshape(self, value: ir.Value, *shape: int, label: str = "") -> ir.Value:
        """``shape`` as ONNX's Reshape has it: 0 is the size that is there, -1 what is left."""
        return self.op("Reshape", value, self.numbers(*shape), label=label or "reshape")

    def heads(self, value: ir.Value, heads: int, size: int, label: str) -> ir.Value:
        """[B,S,heads*size] as [B,heads,S,size]."""
        split = self.reshape(value, 0, 0, heads, size, label=f"{label}.split")
        return self.op("Transpose", split, perm=[0, 2, 1, 3], label=f"{label}.heads")

    def joined(self, value: ir.Value, width: int, label: str) -> ir.Value:
        """[B,heads,S,size] as [B,S,heads*size]; ``width`` is heads*size."""
        turned = self.op("Transpose", value, perm=[0, 2, 1, 3], label=f"{label}.turned")
        return self.reshape(turned, 0, 0, width, label=f"{label}.joined")

    def scaled(self, value: ir.Value, factor: float, label: str) -> ir.Value:
        """The value times a number; itself where that is 1."""
        return value if factor == 1.0 else self.op("Mul", value, self.scalar(factor), label=label)

    def fresh(self, wish: str) -> str:
        count = self._taken.get(wish, 0)
        self._taken[wish] = count + 1
        return self.fresh(f"{wish}_{count}") if count else wish

    def _shared(self, array: Array, label: str) -> ir.Value:
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self.constant(array, label)
        return self._constants[key]
