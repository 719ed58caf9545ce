"""The product that a router's logits are, read so that it can be computed on other rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.ir import dialect
from moec.ir.dialect import LinearSpec
from moec.ir.weights.stored import constant
from moec.passes.graph.edits import is_op

Array = np.ndarray[Any, Any]
_KEEP_ORDER = ("Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")


def router_product(logits: ir.Value, x: ir.Value) -> Callable[[Array], Array] | None:
    """What computes logits [T,E] in float32 of rows [T,d] of ``x``, where they are a product of these rows with a
    constant matrix, and perhaps a constant bias; None where they are something else."""
    logits, node = _source(logits), _source(logits).producer()
    if node is None or not (is_op(node, "MatMul", "Gemm") or dialect.is_moec(node, "Linear")) or not _is_plain(node):
        return None
    rows, matrix, *bias = node.inputs
    tensors = [None if value is None else constant(value) for value in (matrix, *bias)]
    if rows is None or None in tensors or _source(rows) is not _source(x):
        return None
    weight, *added = (np.asarray(tensor.numpy()).astype(np.float32) for tensor in tensors if tensor is not None)
    if _is_transposed(node):
        weight = weight.T
    return lambda found: found @ weight + (added[0] if added else np.float32(0))


def _is_plain(node: ir.Node) -> bool:
    """Whether a product is nothing else beside."""
    if dialect.is_moec(node, "Linear"):
        return dialect.spec_of(node, LinearSpec).activation == "identity"
    floats = (node.attributes.get_float(name, 1.0) for name in ("alpha", "beta"))
    return all(number == 1 for number in floats) and not node.attributes.get_int("transA", 0)


def _is_transposed(node: ir.Node) -> bool:
    """Whether the outputs of the matrix come first."""
    if dialect.is_moec(node, "Linear"):
        return not dialect.spec_of(node, LinearSpec).transposed
    return bool(node.attributes.get_int("transB", 0))


def _source(value: ir.Value) -> ir.Value:
    """The value that has the same rows in the same order, as far back as there is one."""
    node = value.producer()
    while node is not None and is_op(node, *_KEEP_ORDER) and node.inputs[0] is not None:
        before = node.inputs[0]
        if before.shape is None or value.shape is None or not before.shape or before.shape[-1] != value.shape[-1]:
            break
        value, node = before, before.producer()
    return value
