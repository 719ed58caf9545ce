"""Columns of a value that are -inf whatever the model's inputs, as masks make them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from moec.ir import dialect
from moec.ir.dialect import LinearSpec
from moec.ir.weights.stored import constant
from moec.passes.graph.edits import is_op

Array = np.ndarray[Any, Any]


def minus_infinite(value: ir.Value | None, width: int) -> Array:
    """Flags [width] of the columns of a value [..., width] that are -inf in every row, if nothing else is infinite or
    NaN.

    A constant with -inf is followed through Add, Min, Where with a constant condition, the bias of a product, and
    operators that leave columns as they are.
    """
    everywhere = np.ones(width, bool)
    data, node = _numbers(value, width), None if value is None else value.producer()
    if data is not None:
        return (data == -np.inf).all(axis=0)
    if is_op(node, "Add", "Min"):
        return np.any([minus_infinite(operand, width) for operand in node.inputs], axis=0)
    if is_op(node, "Where"):
        condition = _numbers(node.inputs[0], width)
        taken, other = (minus_infinite(operand, width) for operand in node.inputs[1:])
        if condition is None:
            return taken & other
        always, never = (condition != 0).all(axis=0), (condition == 0).all(axis=0)
        return (taken | never) & (other | always)
    if is_op(node, "Cast", "Identity") or (is_op(node, "Reshape") and _has_columns(node.inputs[0], width)):
        floats = value is not None and value.dtype is not None and value.dtype.is_floating_point()
        return minus_infinite(node.inputs[0], width) if floats else ~everywhere
    bias = _bias(node)
    return ~everywhere if bias is None else minus_infinite(bias, width)


def _numbers(value: ir.Value | None, width: int) -> Array | None:
    """The numbers of a constant as rows [n, width], if it has that many columns, or one for all of them."""
    tensor = constant(value)
    if tensor is None:
        return None
    data = np.asarray(tensor.numpy())
    if not data.ndim or data.shape[-1] == 1:
        return np.repeat(data.reshape(-1, 1), width, axis=1)
    return data.reshape(-1, width) if data.shape[-1] == width else None


def _has_columns(value: ir.Value | None, width: int) -> bool:
    return value is not None and bool(value.shape) and value.shape is not None and value.shape[-1] == width


def _bias(node: ir.Node | None) -> ir.Value | None:
    """The bias that a product adds to its columns; None if there is none, or it is scaled by 0 or less."""
    if node is None or len(node.inputs) < 3:
        return None
    if is_op(node, "Gemm") and node.attributes.get_float("beta", 1.0) > 0:
        return node.inputs[2]
    plain = dialect.is_moec(node, "Linear") and dialect.spec_of(node, LinearSpec).activation == "identity"
    return node.inputs[2] if plain else None
