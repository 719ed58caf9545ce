"""Dense products with constant weights, however the graph spells them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.common.errors import UnsupportedError
from moec.ir.dialect import LinearSpec, inputs_of, is_moec, spec_of
from moec.ir.movement import moving
from moec.ir.weights.stored import StoredWeight

Array = np.ndarray[Any, Any]

SAME_ELEMENTS = moving(drops=False, repeats=False, reorders=False)


@dataclasses.dataclass(frozen=True)
class DenseLayer:
    """``input @ weights.T + bias``: weights [out, in] and bias [out] in float32."""

    input: ir.Value
    weights: Array
    bias: Array


def dense_layer(value: ir.Value) -> DenseLayer:
    """The layer that makes a value, reduced to the outputs that a Gather selects, if there is one. Raises
    UnsupportedError, naming the operator, where something else makes the value."""
    node, added = origin(value).producer(), None
    if node is not None and node.op_type == "Gather" and node.inputs[0] is not None and _takes_columns(node):
        layer, columns = dense_layer(node.inputs[0]), constant(node.inputs[1]).astype(np.int64)
        return dataclasses.replace(layer, weights=layer.weights[columns], bias=layer.bias[columns])
    if node is not None and node.op_type == "Add":
        product = next(
            (operand for operand in node.inputs if operand is not None and operand.producer() is not None), None
        )
        others = [operand for operand in node.inputs if operand is not product]
        node = None if product is None else origin(product).producer()
        added = None if others[0] is None else constant(others[0])
    if node is None or node.op_type not in ("MatMul", "Gemm", "Linear") or node.inputs[0] is None:
        source = "an input" if node is None else f"a {node.op_type}"
        raise UnsupportedError(f"{value.name!r} comes from {source}; expected tokens @ weights, with or without a bias")
    weights, bias = _matrix(node)
    total = np.zeros(len(weights), np.float32)
    for vector in (bias, added):
        total = total if vector is None else total + np.broadcast_to(vector.reshape(-1), total.shape)
    return DenseLayer(node.inputs[0], weights, total)


def _takes_columns(node: ir.Node) -> bool:
    """Whether a Gather selects constant places of the last axis, as in routers whose experts were pruned."""
    value, places = node.inputs
    tensor = None if places is None else ir.convenience.get_const_tensor(places)
    last = None if value is None or value.shape is None else value.shape.rank() - 1
    return tensor is not None and len(tensor.shape) == 1 and node.attributes["axis"].as_int() in (-1, last)


def _matrix(node: ir.Node) -> tuple[Array, Array | None]:
    """The weights [out, in] and the bias [out], or None, of a product."""
    if is_moec(node, "Linear"):
        spec, inputs = spec_of(node, LinearSpec), inputs_of(node)
        weight, bias = inputs["weight"], inputs["bias"]
        if spec.activation != "identity" or weight is None:
            raise UnsupportedError(f"a dense product has the activation {spec.activation!r}; expected none")
        return StoredWeight.of(weight).decoded(0, spec.transposed).T, optional(bias)
    weights = constant(node.inputs[1])
    if weights.ndim != 2:
        raise UnsupportedError(f"a product has weights of shape {list(weights.shape)}; expected a matrix")
    if node.op_type == "MatMul":
        return weights.T, None
    attributes = {key: attribute.value for key, attribute in node.attributes.items()}
    if attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0 or attributes.get("transA", 0):
        raise UnsupportedError("a Gemm has alpha, beta or transA; expected x @ weights + bias")
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    return weights if attributes.get("transB", 0) else weights.T, optional(bias)


def optional(value: ir.Value | None) -> Array | None:
    return None if value is None else constant(value)


def constant(value: ir.Value | None) -> Array:
    """A constant in float32. Raises UnsupportedError for a computed value."""
    tensor = None if value is None else ir.convenience.get_const_tensor(origin(value))
    if tensor is None:
        raise UnsupportedError(f"{value.name if value else 'a weight'!r} is computed; expected a constant")
    return tensor.numpy().astype(np.float32)


def consumers(value: ir.Value) -> list[ir.Node]:
    """The nodes that take the value, or a reshaped form of it with the same elements in the same order."""
    nodes: list[ir.Node] = []
    pending = [value]
    while pending:
        for node in pending.pop().consumers():
            nodes.append(node)
            pending += [output for output in node.outputs if output is not value and origin(output) is value]
    return nodes


def origin(value: ir.Value) -> ir.Value:
    """The value that this one is a reshaped form of: the same elements in the same order."""
    producer = value.producer()
    while producer is not None and producer.domain == "" and producer.op_type in SAME_ELEMENTS:
        source = producer.inputs[0]
        assert source is not None
        value, producer = source, source.producer()
    return value
