"""The operands of moec nodes that are weights of products, and how they are stored."""

from __future__ import annotations

import math

import onnx_ir as ir

from moec.ir import dialect
from moec.ir.graphs import is_op
from moec.ir.weights.stored import StoredWeight, minima_of

_WEIGHT_INPUTS = {
    "Experts": ("up", "down", "gate"),
    "MoE": ("up", "down", "gate"),
    "GroupedMatMul": ("weights",),
    "Linear": ("weight",),
    "Expect": ("weights",),
    "Absent": ("weights",),
}


def weight_inputs(node: ir.Node) -> dict[str, ir.Value]:
    """The operands of a moec node that are weights of products, by name; empty for every other node."""
    if not dialect.is_moec(node):
        return {}
    inputs = dialect.inputs_of(node)
    return {name: value for name in _WEIGHT_INPUTS.get(node.op_type, ()) if (value := inputs[name]) is not None}


def size_of_weights(node: ir.Node) -> int:
    """Bytes of the weights of a moec node as they are computed with, however they are stored."""
    typed = ((value.shape, value.dtype) for value in weight_inputs(node).values())
    return sum(math.prod(shape.numpy()) * int(dtype.itemsize) for shape, dtype in typed if shape and dtype)


def stored_weights(node: ir.Node) -> dict[str, StoredWeight]:
    """The storage of each weight of a moec node, by the name of its operand. Raises UnsupportedError like
    :func:`moec.ir.weights.stored.weight_runs`."""
    return {name: StoredWeight.of(value) for name, value in weight_inputs(node).items()}


def input_axis(node: ir.Node, name: str) -> int:
    """The axis of the inputs in the weight operand ``name`` of a moec node, counted from the end (-1 or -2): it is the
    same in the matrix of one expert as in those of all."""
    if node.op_type == "GroupedMatMul":
        return -2
    if node.op_type == "Linear":
        transposed = dialect.spec_of(node, dialect.LinearSpec).transposed
    else:
        spec = dialect.spec_of(node, dialect.ExpertsSpec)
        transposed = spec.down_transposed if name == "down" else spec.up_transposed
    return -2 if transposed else -1


def decoding_nodes(graph: ir.Graph) -> set[ir.Node]:
    """The nodes between a stored weight and the moec node that multiplies by it."""
    pending = [value.producer() for node in graph.all_nodes() for value in weight_inputs(node).values()]
    pending = [node for node in pending if not is_op(node, "Gather")]  # experts that are picked are computed
    decoding: set[ir.Node] = set()
    while pending:
        node = pending.pop()
        if node in decoding or not is_op(node, "Cast", "DequantizeLinear", "Concat", "Sub", "Gather"):
            continue
        if node.op_type == "Sub" and minima_of(node) is None:
            continue
        decoding.add(node)
        if node.op_type != "Cast":
            pending += [value.producer() for value in node.inputs if value is not None]
    return decoding
