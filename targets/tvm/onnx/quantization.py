"""Quantisation and dequantisation of activations; kernels read quantised weights as they are stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from tvm import relax, te, tirx

from moec.common.errors import UnsupportedError
from moec.ir.interpreter import evaluate
from moec.targets.tvm.kernels.int8_rows import magnitude, scale_of, whole_number
from moec.targets.tvm.lowering.attributes import attribute, normalized_axis, optional_input, required_input
from moec.targets.tvm.lowering.constants import constant_of, dtype_name, dtype_of
from moec.targets.tvm.lowering.lowering import Converter, Lowering
from moec.targets.tvm.onnx.reduction import reduce_tensor


def _parameter(lowering: Lowering, node: ir.Node, position: int) -> Callable[[te.Tensor, list[tirx.Expr]], tirx.Expr]:
    """Function that reads an element's scale or zero point, which is input ``position`` of the node.

    There is one for all elements, one per index of ``axis``, or one per block. Raises UnsupportedError for any other
    shape."""
    value = required_input(node, position)
    sizes, own = lowering.dimensions(required_input(node, 0)), lowering.dimensions(value)
    block = attribute(node, "block_size", 0)
    if all(size == 1 for size in own) and not block:
        return lambda tensor, at: tensor(*([0] * len(own)))
    axis = normalized_axis(attribute(node, "axis", 1), len(sizes))
    if block:
        if len(own) != len(sizes):
            raise UnsupportedError(f"scales have {len(own)} axes in blocks of {block}; expected {len(sizes)}")
        return lambda tensor, at: tensor(*(tirx.floordiv(i, block) if a == axis else i for a, i in enumerate(at)))
    if len(own) != 1:
        raise UnsupportedError(f"scales of shape {own}; expected one, one per index of the axis, or block_size")
    return lambda tensor, at: tensor(at[axis])


def _tensors(lowering: Lowering, node: ir.Node) -> list[relax.Expr]:
    """The data, scales and zero points of a node, in the shapes that the readers of :func:`_parameter` index."""
    value, scale = required_input(node, 0), required_input(node, 1)
    sizes, own = lowering.dimensions(value), lowering.dimensions(scale)
    block = attribute(node, "block_size", 0)
    if not all(size == 1 for size in own) or block:
        axis = normalized_axis(attribute(node, "axis", 1), len(sizes))
        blocks = lowering.sizes.quotient([sizes[axis] + block - 1], [block]) if block else sizes[axis]
        own = [blocks if a == axis else size for a, size in enumerate(sizes)] if block else [blocks]
    operands = [operand for operand in (scale, optional_input(node, 2)) if operand is not None]
    return [lowering.tensor(value), *(_of_shape(lowering, operand, own) for operand in operands)]


def _of_shape(lowering: Lowering, value: ir.Value, shape: list[Any]) -> relax.Expr:
    if all(size == 1 for size in (*shape, *lowering.dimensions(value))):
        return lowering.tensor(value)
    return lowering.tensor_of_shape(value, shape)


def _decoded(lowering: Lowering, node: ir.Node) -> relax.Expr | None:
    """A constant of a type in which no kernel computes (fewer than 8 bits, or float8) as a weight of floats.

    The constant is dequantised when weights are written. None for a type that the program can decode."""
    data, output = constant_of(required_input(node, 0)), node.outputs[0]
    constants = [constant_of(value) for value in node.inputs if value is not None]
    if data is None or (data.dtype.is_integer() and data.dtype.bitwidth >= 8) or None in constants:
        return None
    opset = lowering.model.graph.opset_imports[""]

    def load() -> np.ndarray:
        return evaluate([node], {}, [output], opset)[0]

    return lowering.add_weight(str(output.name), data.shape.numpy(), dtype_of(output), load)


def _convert_dequantize(lowering: Lowering, node: ir.Node) -> Any:
    decoded = _decoded(lowering, node)
    if decoded is not None:
        return decoded
    scale_at = _parameter(lowering, node, 1)
    zero_at = None if optional_input(node, 2) is None else _parameter(lowering, node, 2)
    dtype_number = attribute(node, "output_dtype", 0)
    dtype = dtype_name(ir.DataType(dtype_number)) if dtype_number else lowering.dtype(required_input(node, 1))
    source_dtype = lowering.dtype(required_input(node, 0))
    if "int" not in source_dtype:
        raise UnsupportedError(f"elements of {source_dtype}; expected integers")

    def build(source: te.Tensor, scale: te.Tensor, *zero: te.Tensor) -> te.Tensor:
        def element(*at: tirx.Expr) -> tirx.Expr:
            number = source(*at).astype("int64")
            if zero_at is not None:
                number = number - zero_at(zero[0], list(at)).astype("int64")
            return (number.astype("float32") * scale_at(scale, list(at)).astype("float32")).astype(dtype)

        return te.compute(source.shape, element, name="dequantize")

    return lowering.compute(build, _tensors(lowering, node), "dequantize")[0]


def quantized(number: tirx.Expr, zero: tirx.Expr, dtype: str) -> tirx.Expr:
    """``number`` rounded to nearest, ties to even, plus ``zero``, clamped to the range of the type."""
    limits = np.iinfo(dtype)
    wide = tirx.nearbyint(number.astype("float64")) + zero.astype("float64")
    low, high = tirx.const(float(limits.min), "float64"), tirx.const(float(limits.max), "float64")
    kept = tirx.if_then_else(wide > low, tirx.if_then_else(wide < high, wide, high), low)
    return kept.astype("int64").astype(dtype)


def _convert_quantize(lowering: Lowering, node: ir.Node) -> Any:
    scale_at = _parameter(lowering, node, 1)
    zero_at = None if optional_input(node, 2) is None else _parameter(lowering, node, 2)
    dtype_number = attribute(node, "output_dtype", 0)
    if zero_at is not None:
        dtype = lowering.dtype(required_input(node, 2))
    else:
        dtype = dtype_name(ir.DataType(dtype_number)) if dtype_number else "uint8"
    if dtype not in ("int8", "uint8", "int16", "uint16"):
        raise UnsupportedError(f"numbers become {dtype}; expected an integer of 8 or 16 bits")
    precision = attribute(node, "precision", 0)
    wide = dtype_name(ir.DataType(precision)) if precision else lowering.dtype(required_input(node, 1))

    def build(source: te.Tensor, scale: te.Tensor, *zero: te.Tensor) -> te.Tensor:
        def element(*at: tirx.Expr) -> tirx.Expr:
            divisor = scale_at(scale, list(at)).astype(wide)
            nothing: Any = tirx.const(0, "int64")
            return quantized(
                source(*at).astype(wide) / divisor,
                nothing if zero_at is None else zero_at(zero[0], list(at)),
                dtype,
            )

        return te.compute(source.shape, element, name="quantize")

    return lowering.compute(build, _tensors(lowering, node), "quantize")[0]


def _convert_round_rows(lowering: Lowering, node: ir.Node) -> Any:
    value = required_input(node, 0)
    if lowering.dtype(value) != "float32":
        raise UnsupportedError(f"rows of {lowering.dtype(value)}; expected float32")

    def build(x: te.Tensor) -> te.Tensor:
        bits = te.compute(x.shape, lambda *at: magnitude(x(*at)), name="magnitude")
        largest = reduce_tensor(bits, [len(x.shape) - 1], te.max, lambda element, *_: element, "int32")

        def element(*at: tirx.Expr) -> tirx.Expr:
            scale = scale_of(largest(*at[:-1]))
            return whole_number(x(*at), scale) * scale

        return te.compute(x.shape, element, name="round_rows")

    return lowering.compute(build, [lowering.tensor(value)], "round_rows")[0]


CONVERTERS: dict[str, Converter] = {
    "DequantizeLinear": _convert_dequantize,
    "QuantizeLinear": _convert_quantize,
    "moec.RoundRows": _convert_round_rows,
}
