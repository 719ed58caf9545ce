"""Writer of a graph node by node, at the working opset."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from moec.ir.dialect import AnySpec, make_node
from moec.ir.graphs import add_constant
from moec.ir.opsets import OPSET

Array = np.ndarray[Any, Any]


class GraphWriter:
    """Append nodes to a new graph. Labels become names of values; a label that is taken gets a number."""

    def __init__(self, name: str) -> None:
        self.graph = ir.Graph([], [], nodes=[], name=name, opset_imports={"": OPSET, "moec": 1})
        self._taken: dict[str, int] = {}
        self._constants: dict[tuple[Any, ...], ir.Value] = {}

    def input(self, name: str, dtype: ir.DataType, shape: tuple[int | str, ...]) -> ir.Value:
        """Add an input of the graph."""
        value = ir.val(self.fresh(name), dtype, shape)
        self.graph.inputs.append(value)
        return value

    def output(self, value: ir.Value, name: str) -> None:
        """Make a computed value an output of the graph with this name. All outputs are float32."""
        value.name, value.dtype = self.fresh(name), ir.DataType.FLOAT
        self.graph.outputs.append(value)

    def op(self, op_type: str, *inputs: ir.Value | None, label: str = "", **attributes: Any) -> ir.Value:
        """Append a node of ONNX with one output."""
        return self.add(ir.node(op_type, inputs, attributes=attributes), label or op_type.lower())[0]

    def split(self, value: ir.Value, *sizes: int, axis: int, label: str = "split") -> list[ir.Value]:
        """Append a Split of a value along an axis and return its parts."""
        node = ir.node("Split", [value, self.numbers(*sizes)], {"axis": axis}, num_outputs=len(sizes))
        return self.add(node, *(f"{label}.{place}" for place in range(len(sizes))))

    def moec(self, op_type: str, label: str, *specs: AnySpec, **inputs: ir.Value | None) -> list[ir.Value]:
        """Append a node of the dialect and return its outputs."""
        node = make_node(op_type, inputs, *specs)
        return self.add(node, *(label if not place else f"{label}.{place}" for place in range(len(node.outputs))))

    def add(self, node: ir.Node, *labels: str) -> list[ir.Value]:
        """Append a node, with one label per output, and return its outputs."""
        for output, label in zip(node.outputs, labels, strict=True):
            output.name = self.fresh(label)
        node.name = node.outputs[0].name
        self.graph.append(node)
        return list(node.outputs)

    def numbers(self, *numbers: int) -> ir.Value:
        """Constant int64 vector: axes, sizes, shapes."""
        return self._shared(np.array(numbers, np.int64), "numbers")

    def whole(self, number: int) -> ir.Value:
        """Constant int64 scalar."""
        return self._shared(np.array(number, np.int64), "number")

    def scalar(self, number: float) -> ir.Value:
        """Constant float32 scalar."""
        return self._shared(np.array(number, np.float32), "number")

    def constant(self, array: Array, label: str) -> ir.Value:
        return self.weight(ir.tensor(array), label)

    def weight(self, tensor: ir.TensorProtocol, label: str) -> ir.Value:
        return add_constant(self.graph, tensor, self.fresh(label))

    def reshape(self, value: ir.Value, *shape: int, label: str = "") -> ir.Value:
        """Append a Reshape; ``shape`` as in ONNX: 0 keeps a size, -1 takes what is left."""
        return self.op("Reshape", value, self.numbers(*shape), label=label or "reshape")

    def heads(self, value: ir.Value, heads: int, size: int, label: str) -> ir.Value:
        """Split and transpose [B,S,heads*size] to [B,heads,S,size]."""
        split = self.reshape(value, 0, 0, heads, size, label=f"{label}.split")
        return self.op("Transpose", split, perm=[0, 2, 1, 3], label=f"{label}.heads")

    def joined(self, value: ir.Value, width: int, label: str) -> ir.Value:
        """Transpose and join [B,heads,S,size] to [B,S,heads*size]; ``width`` is heads*size."""
        turned = self.op("Transpose", value, perm=[0, 2, 1, 3], label=f"{label}.turned")
        return self.reshape(turned, 0, 0, width, label=f"{label}.joined")

    def scaled(self, value: ir.Value, factor: float, label: str) -> ir.Value:
        """Multiply a value by a number. Returns the value itself where that is 1."""
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
