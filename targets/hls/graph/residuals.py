"""Residual streams in a graph: ``x + block(norm(x))``, through reshapes."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.common.errors import UnsupportedError
from moec.common.names import node_name
from moec.targets.hls.design.normalization import FloatNorm
from moec.targets.hls.graph.dense_layer import SAME_ELEMENTS, constant, optional, origin

Array = np.ndarray[Any, Any]

NORMS = ("LayerNormalization", "RMSNormalization")


@dataclasses.dataclass(frozen=True)
class Residual:
    """The residual stream around a block: ``output = tokens + scale * block(norm(tokens))`` with ``tokens`` [..., d]
    and ``scale`` [d]."""

    tokens: ir.Value
    output: ir.Value
    norm: FloatNorm
    scale: Array


def find_residual(inputs: ir.Value, result: ir.Value) -> Residual | None:
    """The residual around a block that takes ``inputs`` and gives ``result``; None where there is none.

    The result must go to the addition alone, since the hardware keeps nothing else of the block in memory. It may be
    scaled channel by channel on the way. Raises UnsupportedError where the normalisation's weights are computed.
    """
    normalize = origin(inputs).producer()
    if (
        normalize is None
        or normalize.op_type not in NORMS
        or normalize.domain
        or origin(inputs) is not normalize.outputs[0]
    ):
        return None
    tokens = normalize.inputs[0]
    addition, value, scale = _until_addition(result)
    if addition is None or tokens is None or not _is_last_axis(normalize, tokens):
        return None
    others = [operand for operand in addition.inputs if operand is not value]
    if len(others) != 1 or others[0] is None or origin(others[0]) is not origin(tokens):
        return None
    norm = norm_of(normalize)
    return Residual(tokens, addition.outputs[0], norm, np.broadcast_to(scale, norm.weight.shape))


def only_use(value: ir.Value) -> ir.Node | None:
    """The only node that takes a value; None where there are others, or the value is an output of the graph."""
    users = {use.node for use in value.uses()}
    return next(iter(users)) if len(users) == 1 and not value.is_graph_output() else None


def _until_addition(value: ir.Value) -> tuple[ir.Node | None, ir.Value, Array]:
    """The addition that a value leads to through scalings and reshapes, the value that is added there, and the product
    of the scalings. The addition is None where the value leads elsewhere."""
    scale = np.ones(1, np.float32)
    while (user := only_use(value)) is not None and user.domain == "":
        if user.op_type == "Add":
            return user, value, scale
        factors = _factors(user, value)
        if factors is None and not (user.op_type in SAME_ELEMENTS and user.inputs[0] is value):
            break
        scale = scale if factors is None else scale * factors
        value = user.outputs[0]
    return None, value, scale


def _factors(node: ir.Node, value: ir.Value) -> Array | None:
    """The constants [1] or [d] that a Mul scales the channels of a value by; None for another node or operand."""
    if node.op_type != "Mul" or value.shape is None:
        return None
    others = [operand for operand in node.inputs if operand is not None and operand is not value]
    tensor = ir.convenience.get_const_tensor(others[0]) if others else None
    if tensor is None or any(size != 1 for size in list(tensor.shape)[:-1]) or tensor.size not in (1, value.shape[-1]):
        return None
    return tensor.numpy().reshape(-1).astype(np.float32)


def _is_last_axis(normalize: ir.Node, tokens: ir.Value) -> bool:
    attribute = normalize.attributes.get("axis")
    axis = -1 if attribute is None else int(attribute.value)
    return axis == -1 or (tokens.shape is not None and axis == len(tokens.shape) - 1)


def norm_of(node: ir.Node) -> FloatNorm:
    """The float form of a normalisation node. Raises UnsupportedError where its weights are computed, where it
    normalises more than the channels of a token, and for a negative or infinite epsilon."""
    tokens, weight = node.inputs[0], constant(node.inputs[1])
    bias = optional(node.inputs[2]) if len(node.inputs) > 2 else None
    attribute = node.attributes.get("epsilon")
    epsilon = 1e-5 if attribute is None else float(attribute.value)
    if not 0 <= epsilon < math.inf:
        raise UnsupportedError(f"{node_name(node)}: normalises with an epsilon of {epsilon:g}; expected 0 or more")
    last = None if tokens is None or tokens.shape is None else tokens.shape[-1]
    width = last if isinstance(last, int) else weight.size
    sizes = {weight.size, 1 if bias is None else bias.size}
    if tokens is None or not _is_last_axis(node, tokens) or not sizes <= {1, width}:
        raise UnsupportedError(f"{node_name(node)}: normalises more than the channels of a token")
    return FloatNorm(
        "layer" if node.op_type == "LayerNormalization" else "rms",
        np.broadcast_to(weight.reshape(-1), width),
        np.broadcast_to(np.zeros(1, np.float32) if bias is None else bias.reshape(-1), width),
        epsilon,
    )
