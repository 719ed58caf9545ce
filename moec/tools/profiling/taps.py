"""Taps: inputs of layers as further outputs of a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.ir import dialect, semantics
from moec.ir.dialect import DOMAIN, RouteSpec
from moec.ir.weights.stored import constant
from moec.profiles.keys import key_of, measurable

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class Tap:
    """A layer and the outputs that show its inputs; ``inputs``: names of these outputs by the layer's inputs."""

    key: str
    node: ir.Node
    inputs: dict[str, str]

    def rows(self, outputs: Mapping[str, Array]) -> Array:
        """Return x as [T, inputs] in float32."""
        x = outputs[self.inputs["x"]]
        return np.ascontiguousarray(x.reshape(-1, x.shape[-1]), np.float32)

    def routed(self, outputs: Mapping[str, Array]) -> tuple[Array, Array]:
        """Return weights [T,k] in float32 and ids [T,k] of a layer of experts."""
        if dialect.is_moec(self.node, "Experts"):
            weights, ids = (outputs[self.inputs[name]] for name in ("weights", "experts"))
            return weights.astype(np.float32), ids
        value = dialect.inputs_of(self.node)["correction_bias"]
        bias = None if value is None else constant(value)
        value_of_bias = outputs[self.inputs["correction_bias"]] if value is not None and bias is None else bias
        bias = (
            None
            if value_of_bias is None
            else np.asarray(value_of_bias if isinstance(value_of_bias, np.ndarray) else value_of_bias.numpy())
        )
        weights, ids = semantics.route(dialect.spec_of(self.node, RouteSpec), outputs[self.inputs["logits"]], bias)
        return weights.astype(np.float32), ids


def observe(graph: ir.Graph) -> list[Tap]:
    """Make the inputs of all measurable layers outputs of the graph, each value once."""
    graph.opset_imports.setdefault(DOMAIN, 1)
    names: dict[ir.Value, str] = {}
    return [
        Tap(key_of(node), node, {name: _output(graph, value, names) for name, value in _read(node).items()})
        for node in list(measurable(graph))
    ]


def _read(node: ir.Node) -> dict[str, ir.Value]:
    names = ("x", "logits", "correction_bias") if node.op_type == "MoE" else ("x", "weights", "experts")
    inputs = dialect.inputs_of(node)
    values = {name: inputs.get(name) for name in names}
    return {name: value for name, value in values.items() if value is not None and constant(value) is None}


def _output(graph: ir.Graph, value: ir.Value, names: dict[ir.Value, str]) -> str:
    """Make a value an output, unless it is one already, and return the output's name."""
    if value not in names:
        copy = ir.node("Identity", [value])
        output = copy.outputs[0]
        names[value] = f"moec.tap.{len(names)}"
        output.name, output.type, output.shape = names[value], value.type, value.shape
        graph.append(copy)
        graph.outputs.append(output)
    return names[value]
