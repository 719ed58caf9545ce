"""Dense feed-forward layers of a graph, ``x + down(activation(up(norm(x))))``, as blocks of one shared expert.

The activation, and the second product with the nodes that scale or move its results, are found by running them; see
:mod:`moec.targets.hls.graph.affine` and :mod:`moec.targets.hls.moe.shared_expert`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from moec.common.errors import UnsupportedError
from moec.common.names import node_name
from moec.ir.dialect import ExpertsSpec, RouteSpec, is_moec
from moec.ir.semantics import ACTIVATIONS
from moec.targets.hls.graph.affine import affine_maps
from moec.targets.hls.graph.dense_layer import DenseLayer, consumers, origin
from moec.targets.hls.graph.residuals import NORMS, norm_of
from moec.targets.hls.moe.blocks import GraphBlock
from moec.targets.hls.moe.float_block import FloatBlock
from moec.targets.hls.moe.shared_expert import order_of_products, products_behind

_PRODUCTS = ("MatMul", "Gemm")
_QUICK_GELU = 1.702


def find_feed_forward(model: ir.Model, stream: ir.Value, tokens: int) -> GraphBlock | None:
    """The layer that takes ``stream`` [B, T, d]; None where the stream is not both normalised and added to.

    Raises UnsupportedError, naming the node, where something other than such a layer lies in between.
    """
    users = consumers(stream)
    norms = [node for node in users if node.op_type in NORMS and node.domain == ""]
    additions = [node for node in users if node.op_type == "Add" and node.domain == ""]
    if len(norms) != 1 or len(additions) != 1:
        return None
    normal, addition = norms[0].outputs[0], additions[0]
    results = [value for value in addition.inputs if value is not None and origin(value) is not origin(stream)]
    if not results:
        return None
    try:
        numbers = _numbers(model, norms[0], normal, results[0], tokens)
    except UnsupportedError as error:
        raise UnsupportedError(f"{node_name(addition)}: {error}") from error
    return GraphBlock(numbers.name, stream, addition.outputs[0], numbers)


def _numbers(model: ir.Model, norm: ir.Node, normal: ir.Value, result: ir.Value, tokens: int) -> FloatBlock:
    last = _last_product(normal, result)
    hidden = last.inputs[0]
    assert hidden is not None
    products, between = products_behind(hidden, normal)
    spec, gate, up = _activation(products, between, hidden)
    ((down, down_bias),) = affine_maps(model, hidden, [result], len(up.weights), tokens=tokens)
    width = down.shape[0]
    return FloatBlock(
        name=node_name(last),
        routing=RouteSpec(0),
        experts=spec,
        router=np.zeros((0, width), np.float32),
        router_bias=np.zeros(0, np.float32),
        correction_bias=None,
        up=up.weights[None],
        up_bias=up.bias[None],
        gate=None if gate is None else gate.weights[None],
        gate_bias=None if gate is None else gate.bias[None],
        down=down[None],
        down_bias=down_bias[None],
        shared=1,
        norm=norm_of(norm),
    )


def _last_product(normal: ir.Value, result: ir.Value) -> ir.Node:
    """The product nearest to the result, among all that it is computed from."""
    pending, seen = [result], set()
    while pending:
        node = None if pending[0] is normal else pending[0].producer()
        pending = pending[1:]
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.op_type in _PRODUCTS or is_moec(node, "Linear"):
            return node
        pending += [operand for operand in node.inputs if operand is not None]
    raise UnsupportedError(f"there is no product between the normalisation {normal.name!r} and the sum")


def _activation(
    products: dict[ir.Value, DenseLayer], between: list[ir.Node], hidden: ir.Value
) -> tuple[ExpertsSpec, DenseLayer | None, DenseLayer]:
    """The activation between the products, and the products that are gate (or None) and up."""
    for spec in _specs(gated=len(products) == 2):
        order = order_of_products(spec, products, between, hidden)
        if order is not None:
            gate, up = order if spec.gated else (None, order[0])
            return spec, None if gate is None else products[gate], products[up]
    raise UnsupportedError(
        f"{hidden.name!r} is not made by an activation of one product of the normalised tokens, or by one of a gate "
        f"times another; expected {', '.join(sorted(ACTIVATIONS))} or silu"
    )


def _specs(*, gated: bool) -> Iterator[ExpertsSpec]:
    layout = "separate" if gated else "none"
    for activation in ACTIVATIONS:
        yield ExpertsSpec(activation=activation, gate_layout=layout)  # type: ignore[arg-type]
    for alpha in (1.0, _QUICK_GELU):
        yield ExpertsSpec(activation="silu", alpha=alpha, gate_layout=layout)
