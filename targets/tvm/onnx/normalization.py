"""Normalisations without kernels of a target's own. 16-bit floats are computed in float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from tvm import relax, te, tirx

from moec.common.errors import UnsupportedError
from moec.targets.tvm.lowering.attributes import attribute, normalized_axis, required_input
from moec.targets.tvm.lowering.lowering import Converter, Lowering
from moec.targets.tvm.onnx.reduction import reduce_tensor


def _wide(dtype: str) -> str:
    return "float64" if dtype == "float64" else "float32"


def _rank_with_channels(lowering: Lowering, value: ir.Value) -> int:
    rank = len(lowering.dimensions(value))
    if rank < 2:
        raise UnsupportedError(f"the input has {rank} axes; expected N, C and maybe more")
    return rank


def _per_channel(lowering: Lowering, values: list[ir.Value]) -> list[relax.Expr]:
    """The data and parameters, of which there is one per channel."""
    channels = lowering.dimensions(values[0])[1]
    return [lowering.tensor(values[0]), *(lowering.tensor_of_shape(value, [channels]) for value in values[1:])]


def _convert_batch_normalization(lowering: Lowering, node: ir.Node) -> Any:
    if attribute(node, "training_mode", 0):
        raise UnsupportedError("training_mode is 1; expected an inference graph: export the model in evaluation mode")
    values = [required_input(node, position) for position in range(5)]
    _rank_with_channels(lowering, values[0])
    dtype = lowering.dtype(values[0])
    wide, epsilon = _wide(dtype), attribute(node, "epsilon", 1e-5)

    def build(x: te.Tensor, *parameters: te.Tensor) -> te.Tensor:
        def element(*at: tirx.Expr) -> tirx.Expr:
            scale, bias, mean, variance = (parameter(at[1]).astype(wide) for parameter in parameters)
            normal = (x(*at).astype(wide) - mean) / tirx.sqrt(variance + tirx.const(epsilon, wide))
            return (normal * scale + bias).astype(dtype)

        return te.compute(x.shape, element, name="batch_normalization")

    return lowering.compute(build, _per_channel(lowering, values), "batch_normalization")[0]


def _convert_instance_normalization(lowering: Lowering, node: ir.Node) -> Any:
    values = [required_input(node, position) for position in range(3)]
    rank = _rank_with_channels(lowering, values[0])
    count = lowering.sizes.expression(lowering.sizes.product(lowering.dimensions(values[0])[2:]))
    dtype = lowering.dtype(values[0])
    wide, epsilon, axes = _wide(dtype), attribute(node, "epsilon", 1e-5), list(range(2, rank))

    def build(x: te.Tensor, scale: te.Tensor, bias: te.Tensor) -> te.Tensor:
        total = reduce_tensor(x, axes, te.sum, lambda element, *_: element, wide)

        def centred(element: tirx.Expr, *channel: tirx.Expr) -> tirx.Expr:
            return element - total(*channel) / count.astype(wide)

        squares = reduce_tensor(
            x, axes, te.sum, lambda element, *at: centred(element, *at) * centred(element, *at), wide
        )

        def element(*at: tirx.Expr) -> tirx.Expr:
            deviation = tirx.sqrt(squares(*at[:2]) / count.astype(wide) + tirx.const(epsilon, wide))
            normal = centred(x(*at).astype(wide), *at[:2]) / deviation
            return (normal * scale(at[1]).astype(wide) + bias(at[1]).astype(wide)).astype(dtype)

        return te.compute(x.shape, element, name="instance_normalization")

    return lowering.compute(build, _per_channel(lowering, values), "instance_normalization")[0]


def _constant(numbers: list[int]) -> ir.Value:
    return ir.Value(name="axes", const_value=ir.tensor(np.array(numbers, np.int64)))


def _convert_lp_normalization(lowering: Lowering, node: ir.Node) -> Any:
    """Rows of norm 0 become 0."""
    value, power = required_input(node, 0), attribute(node, "p", 2)
    axis = normalized_axis(attribute(node, "axis", -1), len(lowering.dimensions(value)))
    (norm,) = lowering.convert_as(f"ReduceL{power}", [value, _constant([axis])], {"keepdims": 1})

    def build(x: te.Tensor, norms: te.Tensor) -> te.Tensor:
        def element(*at: tirx.Expr) -> tirx.Expr:
            own = norms(*(0 if number == axis else index for number, index in enumerate(at)))
            zero = tirx.const(0, x.dtype)
            return tirx.Select(tirx.EQ(own, zero), zero, x(*at) / own)

        return te.compute(x.shape, element, name="lp_normalization")

    return lowering.compute(build, [lowering.tensor(value), lowering.emit(norm)], "lp_normalization")[0]


def _convert_hardmax(lowering: Lowering, node: ir.Node) -> Any:
    """1 at the first of the largest elements, 0 elsewhere."""
    value = required_input(node, 0)
    axis = normalized_axis(attribute(node, "axis", -1), len(lowering.dimensions(value)))
    (largest,) = lowering.convert_as("ArgMax", [value], {"axis": axis, "keepdims": 1})
    dtype = lowering.dtype(value)

    def build(x: te.Tensor, chosen: te.Tensor) -> te.Tensor:
        def element(*at: tirx.Expr) -> tirx.Expr:
            place = chosen(*(0 if number == axis else index for number, index in enumerate(at)))
            return tirx.Select(tirx.EQ(place, at[axis]), tirx.const(1, dtype), tirx.const(0, dtype))

        return te.compute(x.shape, element, name="hardmax")

    return lowering.compute(build, [lowering.tensor(value), lowering.emit(largest)], "hardmax")[0]


def _convert_local_response_normalization(lowering: Lowering, node: ir.Node) -> Any:
    """Krizhevsky et al., "ImageNet classification with deep convolutional neural networks", section 3.3."""
    value, size = required_input(node, 0), attribute(node, "size")
    _rank_with_channels(lowering, value)
    dtype = lowering.dtype(value)
    wide = _wide(dtype)
    alpha, beta, bias = attribute(node, "alpha", 1e-4), attribute(node, "beta", 0.75), attribute(node, "bias", 1.0)

    def build(x: te.Tensor) -> te.Tensor:
        near = te.reduce_axis((0, size), name="near")

        def squares(*at: tirx.Expr) -> tirx.Expr:
            channel = at[1] + near.var - (size - 1) // 2
            inside = tirx.all(channel >= 0, channel < x.shape[1])
            other = x(at[0], channel, *at[2:]).astype(wide)
            return te.sum(tirx.if_then_else(inside, other * other, tirx.const(0, wide)), axis=[near])

        total = te.compute(x.shape, squares, name="squares")

        def element(*at: tirx.Expr) -> tirx.Expr:
            base = tirx.const(bias, wide) + tirx.const(alpha / size, wide) * total(*at)
            return (x(*at).astype(wide) / tirx.pow(base, tirx.const(beta, wide))).astype(dtype)

        return te.compute(x.shape, element, name="lrn")

    return lowering.compute(build, [lowering.tensor(value)], "lrn")[0]


def _global_pool(reduction: str) -> Converter:
    def convert(lowering: Lowering, node: ir.Node) -> Any:
        value = required_input(node, 0)
        rank = _rank_with_channels(lowering, value)
        return lowering.convert_as(reduction, [value, _constant(list(range(2, rank)))], {"keepdims": 1})

    return convert


def _convert_global_lp_pool(lowering: Lowering, node: ir.Node) -> Any:
    power = attribute(node, "p", 2)
    if power not in (1, 2):
        raise UnsupportedError(f"p is {power}; expected 1 or 2")
    return _global_pool(f"ReduceL{power}")(lowering, node)


CONVERTERS: dict[str, Converter] = {
    "BatchNormalization": _convert_batch_normalization,
    "GlobalAveragePool": _global_pool("ReduceMean"),
    "GlobalLpPool": _convert_global_lp_pool,
    "GlobalMaxPool": _global_pool("ReduceMax"),
    "Hardmax": _convert_hardmax,
    "InstanceNormalization": _convert_instance_normalization,
    "LRN": _convert_local_response_normalization,
    "LpNormalization": _convert_lp_normalization,
}
