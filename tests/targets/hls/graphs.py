"""A builder of small graphs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from moec.ir.dialect import ExpertsSpec, RouteSpec, make_node

D, E, F = 12, 4, 8
ROUTE = RouteSpec(2, normalize=True)


class GraphBuilder:
    """A graph built node by node, with random constants."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(0)
        self.dtype: Any = np.float32
        self.nodes: list[ir.Node] = []
        self.constants: list[ir.Value] = []
        self.x = ir.Value(name="x", shape=ir.Shape(["B", "S", D]), type=ir.TensorType(ir.DataType.FLOAT))

    def constant(self, array: Any) -> ir.Value:
        tensor = ir.tensor(np.asarray(array))
        value = ir.Value(
            name=f"c{len(self.constants)}", shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        self.constants.append(value)
        return value

    def normal(self, *shape: int) -> ir.Value:
        return self.constant(self.random.normal(0, 0.5, shape).astype(self.dtype))

    def add(self, operator: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        return self._append(ir.node(operator, list(inputs), attributes=attributes))

    def dense(self, value: ir.Value, outputs: int, inputs: int = D) -> ir.Value:
        return self.add("Add", self.add("MatMul", value, self.normal(inputs, outputs)), self.normal(outputs))

    def moe(self, tokens: ir.Value, logits: ir.Value, experts: ExpertsSpec, route: RouteSpec = ROUTE) -> ir.Value:
        up = self.normal(E, 2 * F if experts.gated else F, D)
        operands = {"x": tokens, "logits": logits, "up": up, "down": self.normal(E, D, F)}
        return self._append(make_node("MoE", operands, experts, route, name="block"))

    def shared_moe(self, tokens: ir.Value, logits: ir.Value, experts: ExpertsSpec, table: list[int]) -> ir.Value:
        """Routed experts whose ids are looked up in a table; as many experts as the table has different ids."""
        route = make_node("Route", {"logits": logits}, ROUTE)
        weights = self._append(route)
        route.outputs[1].name = "ids"
        ids = self.add("Gather", self.constant(np.array([*table, -1], np.int32)), route.outputs[1], axis=0)
        stored = max(table) + 1
        up, down = self.normal(stored, 2 * F if experts.gated else F, D), self.normal(stored, D, F)
        operands = {"x": tokens, "weights": weights, "experts": ids, "up": up, "down": down}
        return self._append(make_node("Experts", operands, experts, name="block"))

    def rows(self, value: ir.Value) -> ir.Value:
        return self.add("Reshape", value, self.constant(np.array([-1, D])))

    def like_x(self, value: ir.Value) -> ir.Value:
        return self.add("Reshape", value, self.add("Shape", self.x))

    def model(self, output: ir.Value) -> ir.Model:
        graph = ir.Graph(
            [self.x], [output], nodes=self.nodes, initializers=self.constants, opset_imports={"": 24, "moec": 1}
        )
        return ir.Model(graph, ir_version=10)

    def _append(self, node: ir.Node) -> ir.Value:
        node.outputs[0].name = f"v{len(self.nodes)}"
        self.nodes.append(node)
        return node.outputs[0]
