"""Inlining of one body of a control-flow node into the graph around it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.common.names import node_name
from moec.ir.graphs import nested_graphs
from moec.passes.graph.writer import NotDecomposableError, Writer
from moec.passes.shapes.inference import annotate
from moec.passes.shapes.symbolic import Names, SymbolicValues, is_named


class Inliner(Writer):
    """Writer of the bodies of ``node`` in front of it; at most ``most`` nodes for all bodies together.

    Names of sizes inside a body may mean other sizes outside. The shapes of copied nodes are therefore inferred anew,
    from the values that they are given.
    """

    def __init__(self, node: ir.Node, taken: set[str], names: Names, most: int) -> None:
        super().__init__(node, taken)
        self.values = SymbolicValues()
        self.inserted: list[ir.Node] = []
        self._names, self._most = names, most

    def insert(self, node: ir.Node, *labels: str) -> ir.Value:
        output = super().insert(node, *labels)
        self.inserted.append(node)
        annotate(node, self.values, self._names)
        return output

    def body(self, name: str) -> ir.Graph:
        return self.node.attributes[name].as_graph()

    def inline(self, body: ir.Graph, arguments: Sequence[ir.Value]) -> list[ir.Value]:
        """Insert a copy of ``body`` that computes on ``arguments``; return its results.

        Raises NotDecomposableError if it has another number of inputs, or the graph gets too large.
        """
        if len(body.inputs) != len(arguments):
            raise NotDecomposableError(f"its body takes {len(body.inputs)} values; expected {len(arguments)}")
        self._reserve(count_nodes(body))
        copy = body.clone(allow_outer_scope_values=True)
        replacements: dict[ir.Value, ir.Value] = dict(zip(copy.inputs, arguments, strict=True))
        for value in list(copy.initializers.values()):
            assert value.const_value is not None
            replacements[value] = self._constant_like(value.const_value, str(value.name))
        results = list(copy.outputs)
        copy.outputs.clear()
        for inside, outside in replacements.items():
            inside.replace_all_uses_with(outside)
        copied = list(copy)
        copy.remove(copied)
        for node in copied:
            tensor = ir.convenience.get_const_tensor(node.outputs[0]) if node.op_type == "Constant" else None
            if tensor is None:
                self._adopt(node)
            else:
                replacements[node.outputs[0]] = self._constant_like(tensor, str(node.outputs[0].name))
                node.outputs[0].replace_all_uses_with(replacements[node.outputs[0]])
        return [replacements.get(value, value) for value in results]

    def expect_room(self, body: ir.Graph, times: int) -> None:
        """Raises NotDecomposableError before any copy is made if so many copies of a body make the graph too large."""
        self._reserve(count_nodes(body) * times)

    def undo(self) -> None:
        """Remove the inserted nodes; constants stay, unused."""
        for body in (body for node in self.inserted for body in nested_graphs(node)):
            _forget_uses(body)
        self.graph.remove(self.inserted, safe=True)

    def move(self, op_type: str, data: ir.Value, *others: ir.Value, **attributes: Any) -> ir.Value:
        """Add a node whose output has the element type of ``data``."""
        output = self.add(op_type, data, *others, **attributes)
        output.type = data.type
        return output

    def number(self, number: int) -> ir.Value:
        return self.constant(np.array(number, np.int64), "number")

    def element(self, value: ir.Value | None) -> int | None:
        """The only element of a value, 0 or 1 of a boolean; None if it is not known yet or there are several."""
        array = self.values.of(value)
        item = array.ravel()[0] if array is not None and array.size == 1 else None
        return int(item) if isinstance(item, int | np.bool_ | np.integer) else None

    def scalar(self, condition: ir.Value) -> ir.Value:
        """A condition of one element, without axes."""
        flat = self.add("Reshape", condition, self.constant(np.array([], np.int64), "no_axes"), label="condition")
        flat.type = condition.type
        return flat

    def choose(self, condition: ir.Value, yes: ir.Value, no: ir.Value, what: str) -> ir.Value:
        """Select ``yes`` or ``no`` by a condition of one element.

        Raises NotDecomposableError if their shapes may differ.
        """
        if yes is no:
            return yes
        shapes = [list(value.shape or ()) if is_named(value) else None for value in (yes, no)]
        if shapes[0] is None or shapes[0] != shapes[1]:
            first, second = ("an unknown shape" if shape is None else str([str(s) for s in shape]) for shape in shapes)
            raise NotDecomposableError(
                f"{what} is computed or not at run time, and has {first} in one case and "
                f"{second} in the other; expected equal shapes"
            )
        chosen = self.add("Where", self.scalar(condition), yes, no, label=what)
        chosen.type = yes.type
        return chosen

    def _adopt(self, node: ir.Node) -> None:
        """Insert a copied node, under new names."""
        for value in (output for inner in _with_nested(node) for output in inner.outputs):
            value.shape = None
        node.name = f"{node_name(self.node)}.{node_name(node)}"
        self.insert(node, *(output.name or f"left_out_{index}" for index, output in enumerate(node.outputs)))

    def _constant_like(self, tensor: ir.TensorProtocol, label: str) -> ir.Value:
        return self.weight(ir.tensor(tensor.numpy(), dtype=tensor.dtype), label)

    def _reserve(self, nodes: int) -> None:
        if len(self.inserted) + nodes > self._most:
            raise NotDecomposableError(
                f"its bodies, one after the other, make more than {self._most} nodes; expected fewer steps or a "
                "smaller body"
            )


def count_nodes(body: ir.Graph) -> int:
    """Number of nodes of a body, including nodes of bodies inside it."""
    return sum(1 for _ in body.all_nodes())


def _forget_uses(body: ir.Graph) -> None:
    """Let a body that is no longer needed use no value from outside."""
    body.outputs.clear()
    for node in body:
        for inner in nested_graphs(node):
            _forget_uses(inner)
        node.resize_inputs(0)


def _with_nested(node: ir.Node) -> list[ir.Node]:
    nodes, pending = [], [node]
    while pending:
        inner_node = pending.pop()
        nodes.append(inner_node)
        pending.extend(inner for body in nested_graphs(inner_node) for inner in body)
    return nodes
