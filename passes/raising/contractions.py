"""Contractions: nodes that multiply and add up, however that is written."""

from __future__ import annotations

import math

import onnx_ir as ir

from moec.passes.graph.edits import is_op

CONTRACTIONS = frozenset({"Conv", "Einsum", "Gemm", "Linear", "MatMul"})
_INTEGER = {"ConvInteger": (0, 1), "MatMulInteger": (0, 1), "QLinearConv": (0, 3), "QLinearMatMul": (0, 3)}
"""Contractions of rounded operands, and which inputs these are."""


def factors(node: ir.Node | None) -> list[ir.Value]:
    """The operands of a contraction, including a sum of products of elements; empty for all other nodes."""
    if node is not None and node.op_type == "ReduceSum" and node.inputs[0] is not None:
        product = node.inputs[0].producer()
        while is_op(product, "Mul") and len(data := [v for v in product.inputs if not _is_number(v)]) == 1:
            product = data[0].producer() if data[0] is not None else None
        return [value for value in product.inputs if value is not None] if is_op(product, "Mul") else []
    if node is None or node.op_type not in CONTRACTIONS | _INTEGER.keys():
        return []
    operands = (node.inputs[at] for at in _INTEGER.get(node.op_type, (0, 1)) if at < len(node.inputs))
    return [value for value in operands if value is not None]


def is_contraction(node: ir.Node | None) -> bool:
    """Whether a node multiplies data and adds up; a sum of products of elements only counts for data times
    constants."""
    if node is None or node.op_type in CONTRACTIONS | _INTEGER.keys():
        return node is not None
    return any(_is_fixed(value) and not _is_number(value) for value in factors(node))


def _is_fixed(value: ir.Value | None) -> bool:
    """Whether a value is a constant, or computed from constants alone, such as a weight that is stored scaled."""
    if value is None or value.const_value is not None:
        return True
    node = value.producer()
    return node is not None and bool(node.inputs) and all(map(_is_fixed, node.inputs))


def _is_number(value: ir.Value | None) -> bool:
    """Whether a value is a constant of one element."""
    if value is None or not _is_fixed(value):
        return False
    if value.const_value is not None:
        return value.const_value.size == 1
    return value.shape is not None and value.shape.is_static() and math.prod(value.shape.numpy()) == 1
