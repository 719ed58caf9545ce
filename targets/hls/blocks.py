"""The MoE blocks of a graph: where each begins and ends, and its numbers.

A block begins at the tokens that both its router and its experts take, and ends with the experts' sum. Where those
tokens are a normalised residual stream that the sum is added to, ``x + MoE(norm(x))``, the block begins at x and ends
with the addition. What is around it, shared experts included, stays in the graph.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.errors import UnsupportedError
from moec.ir import dialect
from moec.ir.dialect import ExpertsSpec, LinearSpec, RouteSpec, inputs_of, is_moec, spec_of
from moec.ir.mapped_files import release_pages
from moec.ir.names import node_name
from moec.targets.hls.float_block import FloatBlock
from moec.targets.hls.residuals import constant as _constant
from moec.targets.hls.residuals import find_residual
from moec.targets.hls.residuals import origin as _origin
from moec.targets.tvm.stored_weights import StoredWeight, split

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class GraphBlock:
    """``tokens``: the value [..., d] that the block takes; ``output``: its result. ``nodes``: what it computes."""

    name: str
    tokens: ir.Value
    output: ir.Value
    nodes: tuple[ir.Node, ...]
    numbers: FloatBlock


def find_blocks(model: ir.Model) -> list[GraphBlock]:
    """In the order of the graph. Raises UnsupportedError, naming the node, for a block that cannot be cut out."""
    experts = [node for node in model.graph.all_nodes() if is_moec(node, "MoE") or is_moec(node, "Experts")]
    return [_block(node) for node in experts]


def _block(node: ir.Node) -> GraphBlock:
    name = node_name(node)
    inputs = inputs_of(node)
    route = node if node.op_type == "MoE" else _route_of(node, inputs)
    tokens, logits = inputs["x"], inputs_of(route)["logits"]
    assert tokens is not None and logits is not None
    router, bias, router_nodes, routed = _router(name, logits)
    if _origin(routed) is not _origin(tokens):
        raise UnsupportedError(
            f"{name}: its router takes {routed.name!r} and its experts {tokens.name!r}; an HLS block reads one tensor"
        )
    correction = inputs_of(route)["correction_bias"]
    numbers = FloatBlock(
        name=name,
        routing=spec_of(route, RouteSpec),
        experts=spec_of(node, ExpertsSpec),
        router=router,
        router_bias=bias,
        correction_bias=None if correction is None else _constant(name, correction),
        **_experts(node, inputs),
    )
    nodes = (*router_nodes, *({route, node}))
    residual = find_residual(name, tokens, node.outputs[0])
    if residual is None:
        return GraphBlock(name, tokens, node.outputs[0], nodes, numbers)
    numbers = dataclasses.replace(numbers, norm=residual.norm)
    return GraphBlock(name, residual.tokens, residual.output, (*nodes, *residual.nodes), numbers)


def _route_of(node: ir.Node, inputs: dict[str, ir.Value | None]) -> ir.Node:
    weights, experts = inputs["weights"], inputs["experts"]
    route = None if weights is None else _origin(weights).producer()
    if route is None or not is_moec(route, "Route") or experts is None or _origin(experts).producer() is not route:
        raise UnsupportedError(f"{node_name(node)}: its routing is no moec.Route; an HLS block computes its own")
    return route


def _router(name: str, logits: ir.Value) -> tuple[Array, Array, list[ir.Node], ir.Value]:
    """Weights [E, d] and biases [E] behind the logits, the nodes that apply them, and the value they take."""
    node, added = _origin(logits).producer(), None
    nodes = [] if node is None else [node]
    if node is not None and node.op_type == "Add":
        product = next((one for one in node.inputs if one is not None and one.producer() is not None), None)
        others = [one for one in node.inputs if one is not product]
        node = None if product is None else _origin(product).producer()
        added = None if others[0] is None else _constant(name, others[0])
        nodes += [] if node is None else [node]
    if node is None or node.op_type not in ("MatMul", "Gemm", "Linear") or node.inputs[0] is None:
        found = "an input" if node is None else f"a {node.op_type}"
        raise UnsupportedError(f"{name}: the logits come from {found}; expected tokens @ weights, with or without a bias")
    weights, bias = _matrix(name, node)
    total = np.zeros(len(weights), np.float32)
    for one in (bias, added):
        total = total if one is None else total + np.broadcast_to(one.reshape(-1), total.shape)
    return weights, total, nodes, node.inputs[0]


def _matrix(name: str, node: ir.Node) -> tuple[Array, Array | None]:
    """Weights [out, in] and biases of a dense product."""
    if is_moec(node, "Linear"):
        spec, inputs = spec_of(node, LinearSpec), inputs_of(node)
        weight, bias = inputs["weight"], inputs["bias"]
        if spec.activation != "identity" or weight is None:
            raise UnsupportedError(f"{name}: its router has the activation {spec.activation!r}; expected none")
        return StoredWeight.of(weight).decoded(0, True if not spec.transposed else False), _optional(name, bias)
    weights = _constant(name, node.inputs[1])
    if node.op_type == "MatMul":
        return weights.T, None
    attributes = {key: one.value for key, one in node.attributes.items()}
    if attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0 or attributes.get("transA", 0):
        raise UnsupportedError(f"{name}: its router is a Gemm with alpha, beta or transA; expected x @ weights + bias")
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    return weights if attributes.get("transB", 0) else weights.T, _optional(name, bias)


def _experts(node: ir.Node, inputs: dict[str, ir.Value | None]) -> dict[str, Array | None]:
    """The experts' numbers as :class:`FloatBlock` has them."""
    spec, name = spec_of(node, ExpertsSpec), node_name(node)
    biases = {key: _optional(name, inputs[key]) for key in dialect.EXPERT_WEIGHTS if key.endswith("_bias")}
    up, down = (_stacked(inputs[key], transposed) for key, transposed in (("up", spec.up_transposed), ("down", spec.down_transposed)))
    gate = _stacked(inputs["gate"], spec.up_transposed) if spec.gate_layout == "separate" else None
    up_bias, gate_bias = biases["up_bias"], biases["gate_bias"]
    if spec.gated and gate is None:
        gate, up = (part.swapaxes(1, 2) for part in split(spec, up.swapaxes(1, 2)))
        gate_bias, up_bias = (None, None) if up_bias is None else split(spec, up_bias)
    down = _without_missing_units(spec, down)
    units = (len(up), up.shape[1])
    return {
        "up": up,
        "up_bias": _or_zeros(up_bias, units),
        "gate": gate,
        "gate_bias": None if gate is None else _or_zeros(gate_bias, units),
        "down": down,
        "down_bias": _or_zeros(biases["down_bias"], down.shape[:2]),
    }


def _without_missing_units(spec: ExpertsSpec, down: Array) -> Array:
    """Zeros for what an expert's missing hidden units would contribute."""
    down = down.copy() if spec.hidden_sizes else down
    for expert, size in enumerate(spec.hidden_sizes):
        down[expert, :, size:] = 0
    return down


def _stacked(value: ir.Value | None, transposed: bool) -> Array:
    """Of all experts, [E, out, in] in float32."""
    assert value is not None
    weight = StoredWeight.of(value)
    outputs, inputs = weight.out_in(transposed)
    stacked = np.empty((weight.experts, outputs, inputs), np.float32)
    for expert in range(weight.experts):
        stacked[expert] = weight.decoded(expert, transposed).T
        release_pages()
    return stacked


def _or_zeros(bias: Array | None, shape: tuple[int, ...]) -> Array:
    return np.zeros(shape, np.float32) if bias is None else bias


def _optional(name: str, value: ir.Value | None) -> Array | None:
    return None if value is None else _constant(name, value)
