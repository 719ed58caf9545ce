"""Rounding of activations: a number between two steps may become either, by its last bits.

Rounding of weights does not count, because it is done once. Neither does rounding to 16 bits, which moves a result as
little as other roundings of floats; :mod:`moec.tools.spread` derives that from the types of values.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from moec.ir.contrib_quantized import matmul_uses_int8_activations, uses_int8_activations
from moec.ir.dialect import Arithmetic, ProductSpec, is_moec, spec_of


def arithmetics_of(model: ir.Model) -> set[Arithmetic]:
    """The types that activations are rounded to when the model runs: the ``arithmetic`` of its products
    (:class:`~moec.ir.dialect.ProductSpec`), "int8" for onnxruntime's operators that quantise rows and for
    ``moec.RoundRows``, and "int8" or "fp8" where an operator makes numbers of at most 8 bits of floats."""
    return {arithmetic for node in model.graph.all_nodes() for arithmetic in _arithmetics(node)}


def rounded_values(model: ir.Model) -> frozenset[str]:
    """The names of the values that are rounded (:func:`arithmetics_of`) where they are read."""
    reading = (node for node in model.graph.all_nodes() if any(_arithmetics(node)))
    return frozenset(node.inputs[0].name for node in reading if node.inputs[0] is not None and node.inputs[0].name)


def _arithmetics(node: ir.Node) -> Iterator[Arithmetic]:
    if is_moec(node, "RoundRows") or _quantizes_rows(node):
        yield "int8"
    elif "arithmetic" in node.attributes and is_moec(node):
        yield from {spec_of(node, ProductSpec).arithmetic} - {"float32"}
    elif _takes_computed_floats(node):
        narrow = [value.dtype for value in node.outputs if value.dtype is not None and value.dtype.bitwidth <= 8]
        if any(dtype.is_floating_point() for dtype in narrow):
            yield "fp8"
        if any(dtype.is_integer() for dtype in narrow):
            yield "int8"


def _quantizes_rows(node: ir.Node) -> bool:
    """Whether a product of onnxruntime's own quantises its operands."""
    number = node.attributes.get_int
    if node.domain != "com.microsoft":
        return False
    if node.op_type == "MatMulNBits":
        zeros = node.inputs[3] if len(node.inputs) > 3 else None
        float_zeros = zeros is not None and zeros.dtype != ir.DataType.UINT8
        return matmul_uses_int8_activations(number("accuracy_level", 0), float_zeros=float_zeros)
    if node.op_type == "QMoE":
        bits, block_size = number("expert_weight_bits", 4), number("block_size", 0)
        return uses_int8_activations(bits, block_size, number("accuracy_level", 0))
    return False


def _takes_computed_floats(node: ir.Node) -> bool:
    value = node.inputs[0] if node.inputs else None
    if value is None or value.dtype is None or not value.dtype.is_floating_point():
        return False
    return ir.convenience.get_const_tensor(value) is None
