"""The MoE blocks of a graph: where each begins and ends, and its numbers.

A block begins at the tokens that both its router and its experts take, and ends with the experts' sum, an expert that
every token goes to included. Where those tokens are a normalised residual stream that the sum is added to,
``x + MoE(norm(x))``, the block begins at x and ends with the addition. What is around it stays in the graph.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.errors import UnsupportedError
from moec.ir import dialect
from moec.ir.dialect import ExpertsSpec, RouteSpec, inputs_of, is_moec, spec_of
from moec.ir.mapped_files import release_pages
from moec.ir.names import node_name
from moec.targets.hls.dense_layer import dense_layer, optional, origin
from moec.targets.hls.float_block import FloatBlock
from moec.targets.hls.residuals import find_residual
from moec.targets.hls.shared_expert import find_shared_expert, with_shared
from moec.targets.tvm.stored_weights import StoredWeight, split

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class GraphBlock:
    """``tokens``: the value [..., d] that the block takes; ``output``: its result, of the same shape."""

    name: str
    tokens: ir.Value
    output: ir.Value
    numbers: FloatBlock

    def as_tokens(self, array: Array) -> Array:
        """What the graph holds as the block takes it: float32 [T, d]."""
        return array.reshape(-1, self.numbers.width).astype(np.float32)


def find_blocks(model: ir.Model) -> list[GraphBlock]:
    """In the order of the graph. Raises UnsupportedError, naming the node, for a block that cannot be cut out."""
    blocks = []
    for node in model.graph.all_nodes():
        if is_moec(node, "MoE") or is_moec(node, "Experts"):
            try:
                blocks.append(_block(node))
            except UnsupportedError as error:
                raise UnsupportedError(f"{node_name(node)}: {error}") from error
    return blocks


def _block(node: ir.Node) -> GraphBlock:
    inputs, spec, output = inputs_of(node), spec_of(node, ExpertsSpec), node.outputs[0]
    route = node if node.op_type == "MoE" else _route_of(inputs)
    tokens, logits, correction = inputs["x"], inputs_of(route)["logits"], inputs_of(route)["correction_bias"]
    assert tokens is not None and logits is not None
    router = dense_layer(logits)
    if origin(router.input) is not origin(tokens):
        raise UnsupportedError(
            f"its router takes {router.input.name!r} and its experts {tokens.name!r}; an HLS block reads one tensor"
        )
    numbers = FloatBlock(
        name=node_name(node),
        routing=spec_of(route, RouteSpec),
        experts=spec,
        router=router.weights,
        router_bias=router.bias,
        correction_bias=optional(correction),
        **_experts(spec, inputs),
    )
    shared = find_shared_expert(tokens, output, spec)
    if shared is not None:
        # The same tokens, in the shape of the sum.
        numbers, tokens, output = with_shared(numbers, shared), shared.up.input, shared.output
    residual = find_residual(tokens, output)
    if residual is not None:
        numbers = dataclasses.replace(numbers, norm=residual.norm)
        tokens, output = residual.tokens, residual.output
    return GraphBlock(numbers.name, tokens, output, numbers)


def _route_of(inputs: dict[str, ir.Value | None]) -> ir.Node:
    weights, experts = inputs["weights"], inputs["experts"]
    route = None if weights is None else origin(weights).producer()
    if route is None or not is_moec(route, "Route") or experts is None or origin(experts).producer() is not route:
        raise UnsupportedError("its routing is no moec.Route; an HLS block computes its own")
    return route


def _experts(spec: ExpertsSpec, inputs: dict[str, ir.Value | None]) -> dict[str, Any]:
    """The experts' numbers as :class:`FloatBlock` has them."""
    biases = {key: optional(inputs[key]) for key in dialect.EXPERT_WEIGHTS if key.endswith("_bias")}
    up, down = (
        _stacked(inputs[key], transposed)
        for key, transposed in (("up", spec.up_transposed), ("down", spec.down_transposed))
    )
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
