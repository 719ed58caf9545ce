"""Models of experts whose up projection a test stores in its own way."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from moec.ir.dialect import ExpertsSpec, make_node
from moec.ir.graphs import add_constant


def experts_with(E: int, D: int, F: int, make_up: Callable[[ir.Graph], ir.Value]) -> ir.Model:
    """``x`` [T,D], ``weights`` [T,1], ``ids`` [T,1] -> ``y`` [T,D]: the rows times ``make_up`` [E,F,D], which adds its
    nodes to the graph, and the identity."""
    inputs = [
        ir.val("x", ir.DataType.FLOAT, ("T", D)),
        ir.val("weights", ir.DataType.FLOAT, ("T", 1)),
        ir.val("ids", ir.DataType.INT32, ("T", 1)),
    ]
    graph = ir.Graph(inputs, [], nodes=[], name="g", opset_imports={"": 24, "moec": 1})
    up = make_up(graph)
    down = add_constant(graph, ir.tensor(np.eye(D, F, dtype=np.float32)[None].repeat(E, 0)), "down")
    operands = {"x": inputs[0], "weights": inputs[1], "experts": inputs[2], "up": up, "down": down}
    experts = make_node("Experts", operands, ExpertsSpec("identity", "none"))
    experts.outputs[0].name = "y"
    graph.append(experts)
    graph.outputs.append(experts.outputs[0])
    return ir.Model(graph, ir_version=11)
