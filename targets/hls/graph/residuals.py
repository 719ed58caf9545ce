"""Residual streams in a graph: ``x + block(norm(x))``, through reshapes."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.targets.hls.graph.dense_layer import SAME_ELEMENTS, constant, optional, origin
from moec.targets.hls.normalization import FloatNorm

Array = np.ndarray[Any, Any]

NORMS = ("LayerNormalization", "RMSNormalization")


@dataclasses.dataclass(frozen=True)
class Residual:
    """``tokens`` [..., d] are normalised by ``norm`` for a block, and added to what it makes of them: ``output``."""

    tokens: ir.Value
    output: ir.Value
    norm: FloatNorm


def find_residual(inputs: ir.Value, result: ir.Value) -> Residual | None:
    """The residual around a block that takes ``inputs`` and gives ``result``; None where there is none.

    The result must go to the addition alone, for nothing else of the block is in memory. Raises UnsupportedError where
    the normalisation's weights are computed.
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
    addition, value = _until_addition(result)
    if addition is None or tokens is None or not _is_last_axis(normalize, tokens):
        return None
    others = [operand for operand in addition.inputs if operand is not value]
    if len(others) != 1 or others[0] is None or origin(others[0]) is not origin(tokens):
        return None
    return Residual(tokens, addition.outputs[0], norm_of(normalize))


def only_use(value: ir.Value) -> ir.Node | None:
    """The one node that takes a value, where there is just one and the graph does not give it away."""
    users = {use.node for use in value.uses()}
    return next(iter(users)) if len(users) == 1 and not value.is_graph_output() else None


def _until_addition(value: ir.Value) -> tuple[ir.Node | None, ir.Value]:
    """The addition that a value ends in, and the value that is added; None where it does not."""
    user = only_use(value)
    while user is not None and user.domain == "" and user.op_type in SAME_ELEMENTS and user.inputs[0] is value:
        value = user.outputs[0]
        user = only_use(value)
    is_addition = user is not None and user.domain == "" and user.op_type == "Add"
    return (user if is_addition else None), value


def _is_last_axis(normalize: ir.Node, tokens: ir.Value) -> bool:
    attribute = normalize.attributes.get("axis")
    axis = -1 if attribute is None else int(attribute.value)
    return axis == -1 or (tokens.shape is not None and axis == len(tokens.shape) - 1)


def norm_of(node: ir.Node) -> FloatNorm:
    """Raises UnsupportedError where its weights are computed."""
    weight = constant(node.inputs[1]).reshape(-1)
    bias = optional(node.inputs[2]) if len(node.inputs) > 2 else None
    epsilon = node.attributes.get("epsilon")
    return FloatNorm(
        "layer" if node.op_type == "LayerNormalization" else "rms",
        weight,
        np.zeros_like(weight) if bias is None else bias.reshape(-1),
        1e-5 if epsilon is None else float(epsilon.value),
    )
