"""The product that a router's logits are, read so that it can be computed on other rows, and changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.ir import dialect
from moec.ir.dialect import LinearSpec
from moec.ir.graphs import add_constant
from moec.ir.weights.stored import constant
from moec.passes.graph.edits import fresh_name, is_op, remove_unused

Array = np.ndarray[Any, Any]
_KEEP_ORDER = ("Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")


@dataclasses.dataclass(frozen=True)
class RouterProduct:
    """The ``node`` that computes logits [T,R] of rows [T,d]: a product with ``weight`` [d,R] and, where it has one, the
    ``bias`` [R], both in float32."""

    node: ir.Node
    weight: Array
    bias: Array | None

    def __call__(self, rows: Array) -> Array:
        """The logits [T,R] of rows [T,d], in the type of these, float32 or wider."""
        return rows @ self.weight + (np.float32(0) if self.bias is None else self.bias)

    def rounded(self, weight: Array, bias: Array | None) -> tuple[Array, Array | None]:
        """Another weight [d,R] and bias [R] rounded to the types of those it has, in float32."""
        types = [None if (tensor := constant(value)) is None else tensor.dtype.numpy() for value in self.node.inputs]
        own = weight.astype(types[1]).astype(np.float32)
        return own, None if bias is None else bias.astype(types[2]).astype(np.float32)

    def replace(self, graph: ir.Graph, weight: Array, bias: Array | None) -> None:
        """Let the node multiply by another weight [d,R] and add another bias [R], in the types of those it has."""
        self._replace(graph, 1, weight.T if _is_transposed(self.node) else weight)
        if bias is not None:
            self._replace(graph, 2, bias)

    def _replace(self, graph: ir.Graph, position: int, numbers: Array) -> None:
        old = self.node.inputs[position]
        tensor = constant(old)
        assert old is not None and tensor is not None
        rounded = numbers.astype(tensor.dtype.numpy()).reshape(tensor.shape.numpy())
        name = fresh_name(graph, f"{old.name}_tuned")
        self.node.replace_input_with(position, add_constant(graph, ir.Tensor(rounded, dtype=tensor.dtype), name))
        remove_unused(graph, old)


def other_user_of_logits(logits: ir.Value, product: RouterProduct) -> str | None:
    """Another user of the logits that a product makes than the router, in words; None if there is none."""
    for value in _path(logits):
        if value.is_graph_output():
            return f"{value.name!r} is an output of the model"
        if len(value.uses()) > 1:
            return f"{value.name!r} has other users"
        if value.producer() is product.node:
            break
    return None


def router_product(logits: ir.Value, x: ir.Value) -> RouterProduct | None:
    """The product of rows [T,d] of ``x`` with a constant matrix, and perhaps a bias, that logits [T,R] are; None where
    they are something else."""
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
    return RouterProduct(node, weight, added[0] if added else None)


def _is_plain(node: ir.Node) -> bool:
    """Whether a node is a product and nothing else."""
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
    *_, first = _path(value)
    return first


def _path(value: ir.Value) -> Iterator[ir.Value]:
    """A value and those before it that have the same rows in the same order."""
    yield value
    node = value.producer()
    while node is not None and is_op(node, *_KEEP_ORDER) and node.inputs[0] is not None:
        before = node.inputs[0]
        if before.shape is None or value.shape is None or not before.shape or before.shape[-1] != value.shape[-1]:
            break
        yield before
        value, node = before, before.producer()
