"""The attention blocks of a graph: where each begins and ends, and its numbers.

A block is ``x + output(heads(norm(x)))`` around a standard Attention operator without caches and without a mask, or
with one that masks nothing. What lies between the normalisation and the operator, and between the operator and the
addition, may be spelled in any way (one product for queries, keys and values or three, reshapes, transpositions,
slices): its matrices are found by running it on unit vectors, and random vectors at various positions must agree with
them. So whatever is not the same product for every token, such as rotary embeddings or a normalisation of heads, is
refused.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.errors import UnsupportedError
from moec.ir.names import node_name
from moec.targets.hls.attention.float_block import FloatAttention
from moec.targets.hls.attention.mask import masks_nothing
from moec.targets.hls.graph.affine import affine_maps
from moec.targets.hls.graph.dense_layer import origin
from moec.targets.hls.graph.residuals import NORMS, norm_of, only_use

Array = np.ndarray[Any, Any]

_MOST_NODES = 32
"""Between the operator and the normalisation, or the addition."""


@dataclasses.dataclass(frozen=True)
class GraphAttention:
    """``tokens``: the residual stream [B, T, d] that the block takes; ``output``: what it makes of it."""

    name: str
    tokens: ir.Value
    output: ir.Value
    numbers: FloatAttention

    def as_tokens(self, array: Array) -> Array:
        """What the graph holds as the block takes it: sequences, float32 [B, T, d]."""
        return array.astype(np.float32)


def find_attention(model: ir.Model) -> tuple[list[GraphAttention], list[str]]:
    """Attention blocks in the order of the graph, and why others stay outside, naming their nodes."""
    found, refused = [], []
    for node in model.graph:
        if node.op_type == "Attention" and node.domain == "":
            try:
                found.append(_block(model, node))
            except UnsupportedError as error:
                refused.append(f"{node_name(node)}: {error}")
    return found, refused


def _block(model: ir.Model, node: ir.Node) -> GraphAttention:
    _expect_plain(model, node)
    query, key, value = (operand for operand in node.inputs[:3] if operand is not None)
    normalize = _normalization_of(query)
    tokens, normalized = normalize.inputs[0], normalize.outputs[0]
    assert tokens is not None
    width = None if tokens.shape is None or len(tokens.shape) != 3 else tokens.shape[2]
    if not isinstance(width, int):
        raise UnsupportedError(f"its tokens have the shape {tokens.shape}; expected [batch, tokens, channels]")
    before, addition = _addition_of(node.outputs[0], tokens)
    projected = affine_maps(model, normalized, [query, key, value], width)
    heads, channels = _heads(node, query), projected[0][1].size
    if any(weights.shape != projected[0][0].shape for weights, _ in projected) or channels % heads:
        shapes = [weights.shape for weights, _ in projected]
        raise UnsupportedError(
            f"queries, keys and values have the sizes {shapes}; expected as many heads and channels of each"
        )
    ((output, output_bias),) = affine_maps(model, node.outputs[0], [before], channels, heads=heads)
    rows = [weights.reshape(heads, -1, width) for weights, _ in projected]
    biases = [bias.reshape(heads, -1) for _, bias in projected]
    scale = node.attributes.get("scale")
    numbers = FloatAttention(
        name=node_name(node),
        norm=norm_of(normalize),
        scale=(channels // heads) ** -0.5 if scale is None else float(scale.value),
        query=rows[0],
        query_bias=biases[0],
        key=rows[1],
        key_bias=biases[1],
        value=rows[2],
        value_bias=biases[2],
        output=output,
        output_bias=output_bias,
    )
    return GraphAttention(numbers.name, tokens, addition.outputs[0], numbers)


def _expect_plain(model: ir.Model, node: ir.Node) -> None:
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    is_masked = mask is not None and not masks_nothing(model, mask)
    if is_masked or any(operand is not None for operand in node.inputs[4:]):
        raise UnsupportedError("it has a mask, a cache or lengths; the attention block of the templates has none")
    for name, usual in (("is_causal", 0), ("softcap", 0.0)):
        attribute = node.attributes.get(name)
        if attribute is not None and attribute.value != usual:
            raise UnsupportedError(f"{name} is {attribute.value}; the attention block of the templates has {usual}")
    if any(output is not None and (output.uses() or output.is_graph_output()) for output in node.outputs[1:]):
        raise UnsupportedError("its keys, values or scores are used; they stay inside of the block")


def _normalization_of(value: ir.Value) -> ir.Node:
    """The nearest normalisation of tokens that a value is computed from."""
    pending = [value]
    for _ in range(_MOST_NODES):
        producers = [producer for needed in pending if (producer := needed.producer()) is not None]
        for producer in producers:
            if producer.op_type in NORMS and producer.domain == "":
                return producer
        pending = [operand for producer in producers for operand in producer.inputs if operand is not None]
    raise UnsupportedError("its queries are not made of a LayerNormalization or RMSNormalization")


def _addition_of(result: ir.Value, tokens: ir.Value) -> tuple[ir.Value, ir.Node]:
    """What is added to the tokens, and the addition. Nothing between it and the result is used elsewhere."""
    value = result
    for _ in range(_MOST_NODES):
        user = only_use(value)
        if user is None:
            break
        others = [operand for operand in user.inputs if operand is not value and operand is not None]
        if user.op_type == "Add" and len(others) == 1 and origin(others[0]) is origin(tokens):
            return value, user
        value = user.outputs[0]
    raise UnsupportedError("its result is not added to the tokens that it was made of")


def _heads(node: ir.Node, query: ir.Value) -> int:
    count = None if query.shape is None or len(query.shape) != 4 else query.shape[1]
    if isinstance(count, int):
        return count
    attribute = node.attributes.get("q_num_heads")
    if attribute is None:
        raise UnsupportedError(f"queries have the shape {query.shape}, which does not say how many heads there are")
    return int(attribute.value)
