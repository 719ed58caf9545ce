"""Operators of onnxruntime's domain ``com.microsoft`` (and its SimplifiedLayerNormalization), by what they stand for.

Definitions: onnxruntime, docs/ContribOperators.md.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from tvm import te, tirx

from moec.errors import UnsupportedError
from moec.targets.tvm.attributes import attribute, optional_input, required_input
from moec.targets.tvm.broadcasting import emit_elementwise
from moec.targets.tvm.convert_elementwise import gelu, gelu_tanh, in_float32
from moec.targets.tvm.lowering import Converter, Lowering


def _convert_bias_gelu(lowering: Lowering, node: ir.Node) -> Any:
    values = [required_input(node, 0), required_input(node, 1)]
    return emit_elementwise(lowering, values, in_float32(lambda x, bias: gelu(x + bias)), "bias_gelu")


def _convert_fast_gelu(lowering: Lowering, node: ir.Node) -> Any:
    bias = optional_input(node, 1)
    values = [required_input(node, 0), *([] if bias is None else [bias])]
    return emit_elementwise(
        lowering, values, in_float32(lambda *terms: gelu_tanh(sum(terms[1:], terms[0]))), "fast_gelu"
    )


def _convert_fused_matmul(lowering: Lowering, node: ir.Node) -> Any:
    if attribute(node, "transBatchA", 0) or attribute(node, "transBatchB", 0):
        raise UnsupportedError("transBatchA and transBatchB of FusedMatMul are not supported; expected 0")
    operands = []
    for position, name in enumerate(("transA", "transB")):
        operand = required_input(node, position)
        operands.append(_swapped(lowering, operand) if attribute(node, name, 0) else operand)
    (product,) = lowering.convert_as("MatMul", operands, {})
    alpha = attribute(node, "alpha", 1.0)
    if alpha == 1.0:
        return product
    value = lowering.value_of(product)
    return emit_elementwise(lowering, [value], lambda x: x * tirx.const(alpha, x.ty.dtype), "scale")


def _swapped(lowering: Lowering, value: ir.Value) -> ir.Value:
    def build(source: te.Tensor) -> te.Tensor:
        shape = [*source.shape[:-2], source.shape[-1], source.shape[-2]]
        return te.compute(shape, lambda *at: source(*at[:-2], at[-1], at[-2]), name="transpose")

    return lowering.value_of(lowering.compute(build, [lowering.tensor(value)], "transpose")[0])


def _convert_simplified_layer_norm(lowering: Lowering, node: ir.Node) -> Any:
    values = [required_input(node, 0), required_input(node, 1)]
    attributes = {"axis": attribute(node, "axis", -1), "epsilon": attribute(node, "epsilon", 1e-5)}
    return lowering.convert_as("RMSNormalization", values, attributes)


def _skip_norm(operator: str, scale_position: int, shift_position: int | None, bias_position: int) -> Converter:
    """``sum = input + skip + bias?``; the outputs are the normalised sum and, in place 3, the sum itself."""

    def convert(lowering: Lowering, node: ir.Node) -> Any:
        if any(output.uses() or output.is_graph_output() for output in node.outputs[1:3]):
            raise UnsupportedError("the mean or inverse deviation of a skip normalisation is used; expected neither")
        bias = optional_input(node, bias_position)
        terms = [required_input(node, 0), required_input(node, 1), *([] if bias is None else [bias])]
        total = emit_elementwise(lowering, terms, lambda *elements: sum(elements[1:], elements[0]), "skip_sum")
        inputs = [lowering.value_of(total), required_input(node, scale_position)]
        shift = None if shift_position is None else optional_input(node, shift_position)
        inputs += [] if shift is None else [shift]
        epsilon = {"axis": -1, "epsilon": attribute(node, "epsilon", 1e-5)}
        (normalized, *_) = lowering.convert_as(operator, inputs, epsilon)
        return [normalized, None, None, total]

    return convert


CONVERTERS: dict[str, Converter] = {
    "com.microsoft.BiasGelu": _convert_bias_gelu,
    "com.microsoft.FastGelu": _convert_fast_gelu,
    "com.microsoft.FusedMatMul": _convert_fused_matmul,
    "SimplifiedLayerNormalization": _convert_simplified_layer_norm,
    "com.microsoft.SkipSimplifiedLayerNormalization": _skip_norm("RMSNormalization", 2, None, 3),
    "com.microsoft.SkipLayerNormalization": _skip_norm("LayerNormalization", 2, 3, 4),
}
