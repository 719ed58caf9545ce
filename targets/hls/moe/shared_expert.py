"""The shared expert, which every token goes to: found next to a block, and cut into pieces of the experts' size.

An exporter writes it as dense products of the block's own tokens, whose result is added to the block's. The nodes
between the products are run and compared with the experts' activation, whatever their operators are.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.common.errors import UnsupportedError
from moec.ir import semantics
from moec.ir.dialect import ExpertsSpec
from moec.ir.interpreter import EvaluationError, evaluate
from moec.targets.hls.graph.dense_layer import DenseLayer, consumers, dense_layer, origin
from moec.targets.hls.moe.float_block import FloatBlock

Array = np.ndarray[Any, Any]

_MOST_NODES = 12
"""The most nodes between the products; any activation needs fewer."""


@dataclasses.dataclass(frozen=True)
class SharedExpert:
    """The products of a shared expert. ``output``: the value that is the block's result plus the expert's."""

    output: ir.Value
    up: DenseLayer
    gate: DenseLayer | None
    down: DenseLayer


def find_shared_expert(tokens: ir.Value, output: ir.Value, spec: ExpertsSpec) -> SharedExpert | None:
    """The shared expert of a block from ``tokens`` to ``output``; None where nothing, or something else, is added to
    the output."""
    addition = _added(output)
    if addition is None:
        return None
    total, added = addition
    down = _layer(added)
    if down is None:
        return None
    products, between = products_behind(down.input, tokens)
    order = order_of_products(spec, products, between, down.input)
    if order is None:
        return None
    gate, up = (products[order[0]], products[order[1]]) if spec.gated else (None, products[order[0]])
    return SharedExpert(total, up, gate, down)


def with_shared(block: FloatBlock, shared: SharedExpert) -> FloatBlock:
    """The block with the shared expert added, in pieces with as many hidden units as the other experts have. The sum of
    the pieces is the expert's result."""
    pieces = -(-len(shared.up.weights) // block.hidden)

    def cut(array: Array, axis: int) -> Array:
        padding = [(0, 0)] * array.ndim
        padding[axis] = (0, pieces * block.hidden - array.shape[axis])
        return np.stack(np.split(np.pad(array, padding), pieces, axis=axis))

    down_bias = np.zeros((pieces, block.width), np.float32)
    down_bias[0] = shared.down.bias
    gate, gate_bias = block.gate, block.gate_bias
    if shared.gate is not None and gate is not None and gate_bias is not None:
        gate = np.concatenate([gate, cut(shared.gate.weights, 0)])
        gate_bias = np.concatenate([gate_bias, cut(shared.gate.bias, 0)])
    stored = block.stored
    if stored is not None:
        rounded = {part: np.pad(steps, [(0, pieces), (0, 0), (0, 0)]) for part, steps in stored.of.items()}
        stored = dataclasses.replace(stored, whole=False, of=rounded)
    return dataclasses.replace(
        block,
        up=np.concatenate([block.up, cut(shared.up.weights, 0)]),
        up_bias=np.concatenate([block.up_bias, cut(shared.up.bias, 0)]),
        gate=gate,
        gate_bias=gate_bias,
        down=np.concatenate([block.down, cut(shared.down.weights, 1)]),
        down_bias=np.concatenate([block.down_bias, down_bias]),
        shared=pieces,
        stored=stored,
    )


def _added(output: ir.Value) -> tuple[ir.Value, ir.Value] | None:
    """The sum of the block's output and another value, and that value; None where nothing is added."""
    for node in consumers(output):
        if node.op_type != "Add" or node.domain:
            continue
        left, right = node.inputs
        assert left is not None and right is not None
        other = right if origin(left) is output else left
        return node.outputs[0], origin(other)
    return None


def _layer(value: ir.Value) -> DenseLayer | None:
    try:
        return dense_layer(value)
    except UnsupportedError:
        return None


def products_behind(hidden: ir.Value, tokens: ir.Value) -> tuple[dict[ir.Value, DenseLayer], list[ir.Node]]:
    """The dense products of the tokens that the hidden units are computed from, and the nodes in between. Both are
    empty where the hidden units depend on anything else."""
    products: dict[ir.Value, DenseLayer] = {}
    between: list[ir.Node] = []
    pending = [hidden]
    while pending:
        value = pending.pop()
        if value in products:
            continue
        layer = _layer(value)
        if layer is not None and origin(layer.input) is origin(tokens):
            products[value] = layer
            continue
        node = value.producer()
        if node is None:
            if ir.convenience.get_const_tensor(value) is None:
                return {}, []
            continue
        if node not in between:
            between.append(node)
            pending += [operand for operand in node.inputs if operand is not None]
        if len(between) > _MOST_NODES:
            return {}, []
    return products, between


def order_of_products(
    spec: ExpertsSpec, products: dict[ir.Value, DenseLayer], between: list[ir.Node], hidden: ir.Value
) -> tuple[ir.Value, ...] | None:
    """The products that are gate and up, or up alone, such that the nodes in between compute the hidden units as
    experts of this ``spec`` do; None where no order does."""
    if len(products) != (2 if spec.gated else 1):
        return None
    orders = itertools.permutations(products)
    return next((order for order in orders if _is_activation(spec, order, between, hidden)), None)


def _is_activation(spec: ExpertsSpec, order: tuple[ir.Value, ...], between: list[ir.Node], hidden: ir.Value) -> bool:
    """Whether the nodes compute the hidden units of such experts if ``order`` is gate and up, or up alone."""
    random = np.random.default_rng(0)
    rank = len(order[0].shape) if order[0].shape is not None else 2
    samples = [random.normal(0, 3, (*[1] * (rank - 1), 257)).astype(np.float32) for _ in order]
    gate, up = (samples[0], samples[1]) if spec.gated else (None, samples[0])
    expected = semantics.activated(spec, gate, up)
    nodes = sorted(between, key=_positions(between).__getitem__)
    try:
        (actual,) = evaluate(nodes, dict(zip(order, samples, strict=True)), [hidden])
    except (EvaluationError, ValueError):
        return False
    return actual.shape == expected.shape and bool(np.allclose(actual, expected, rtol=1e-3, atol=1e-4))


def _positions(nodes: list[ir.Node]) -> dict[ir.Node, int]:
    graph = nodes[0].graph if nodes else None
    return {node: index for index, node in enumerate(graph or ())}
