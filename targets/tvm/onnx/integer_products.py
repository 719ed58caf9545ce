"""Matrix products and convolutions of 8-bit integers, summed in int32 in one fixed order."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from tvm import relax, te, tirx

from moec.common.errors import UnsupportedError
from moec.targets.tvm.lowering.attributes import group_count, optional_input, required_input
from moec.targets.tvm.lowering.broadcasting import broadcast_shape
from moec.targets.tvm.lowering.lowering import Converter, Lowering
from moec.targets.tvm.onnx.quantization import quantized
from moec.targets.tvm.onnx.windows import Windows, all_inside


def _at(tensor: te.Tensor, index: tirx.Expr) -> tirx.Expr:
    """The element at the index, or the only element of a tensor with one."""
    if all(isinstance(size, tirx.IntImm) and int(size) == 1 for size in tensor.shape):
        return tensor(*[0] * len(tensor.shape))
    return tensor(index)


def _parameters(lowering: Lowering, values: list[ir.Value | None], sizes: list[Any]) -> list[relax.Expr]:
    """Tensors of the scales and zero points that are present, each of one element or of the size paired with it."""
    return [
        lowering.tensor(value)
        if all(own == 1 for own in lowering.dimensions(value))
        else lowering.tensor_of_shape(value, [size])
        for value, size in zip(values, sizes, strict=True)
        if value is not None
    ]


def _integer(element: tirx.Expr, zero: tirx.Expr | None) -> tirx.Expr:
    wide = element.astype("int32")
    return wide if zero is None else wide - zero.astype("int32")


def _product(lowering: Lowering, a: ir.Value, b: ir.Value, zeros: list[ir.Value | None]) -> relax.Var:
    """``(a - a_zero) @ (b - b_zero)`` as int32; zero points are for all, or for each row of a and column of b."""
    left, right = lowering.dimensions(a), lowering.dimensions(b)
    if min(len(left), len(right)) < 2:
        raise UnsupportedError(f"operands of shapes {left} and {right}; expected matrices")
    if not all(_may_broadcast(lowering, size, other) for size, other in zip(left[-3::-1], right[-3::-1], strict=False)):
        raise UnsupportedError(f"batches of shapes {left[:-2]} and {right[:-2]}; expected sizes known to be equal or 1")
    batch = broadcast_shape(lowering.sizes, [left[:-2], right[:-2]])
    factors = [lowering.tensor(a), lowering.tensor_of_shape(b, [*right[:-2], left[-1], right[-1]])]
    shape = [lowering.sizes.expression(size) for size in (*batch, left[-2], right[-1])]
    parameters = _parameters(lowering, zeros, [left[-2], right[-1]])

    def build(x: te.Tensor, y: te.Tensor, *points: te.Tensor) -> te.Tensor:
        remaining = iter(points)
        x_zero, y_zero = (None if zero is None else next(remaining) for zero in zeros)
        k = te.reduce_axis((0, x.shape[-1]), name="k")

        def element(*at: tirx.Expr) -> tirx.Expr:
            *outer, row, column = at
            a = _batched(x, left, outer, [row, k])
            other = _batched(y, right, outer, [k, column])
            return te.sum(
                _integer(a, None if x_zero is None else _at(x_zero, row))
                * _integer(other, None if y_zero is None else _at(y_zero, column)),
                axis=[k],
            )

        return te.compute(shape, element, name="product")

    return lowering.compute(build, [*factors, *parameters], "integer_product")[0]


def _may_broadcast(lowering: Lowering, size: Any, other: Any) -> bool:
    return 1 in (size, other) or bool(lowering.sizes.equal(size, other))


def _batched(tensor: te.Tensor, shape: list[Any], outer: list[Any], matrix: list[Any]) -> tirx.Expr:
    """An element of a matrix among those that broadcast."""
    own = outer[len(outer) - (len(shape) - 2) :]
    return tensor(*(0 if size == 1 else index for size, index in zip(shape[:-2], own, strict=True)), *matrix)


def _convert_matmul_integer(lowering: Lowering, node: ir.Node) -> Any:
    zeros = [optional_input(node, 2), optional_input(node, 3)]
    return _product(lowering, required_input(node, 0), required_input(node, 1), zeros)


def _requantized(
    lowering: Lowering, sums: relax.Expr, scales: list[ir.Value], zero: ir.Value, per_index: tuple[int, int]
) -> relax.Var:
    """``sums * left * right / result`` rounded to the type of ``zero``; ``per_index``: the axes of the sums that the
    left and the right scale may be per."""
    dtype = lowering.dtype(zero)

    def build(total: te.Tensor, left: te.Tensor, right: te.Tensor, result: te.Tensor, point: te.Tensor) -> te.Tensor:
        def element(*at: tirx.Expr) -> tirx.Expr:
            factors = [_at(left, at[per_index[0]]), _at(right, at[per_index[1]]), _at(result, at[per_index[0]])]
            left_scale, other, divisor = (factor.astype("float32") for factor in factors)
            number = total(*at).astype("float32") * (left_scale * other / divisor)
            return quantized(number, _at(point, at[per_index[0]]).astype("int64"), dtype)

        return te.compute(total.shape, element, name="requantize")

    along = [sums.ty.shape.values[per_index[0]], sums.ty.shape.values[per_index[1]]]
    sizes = [lowering.sizes.simplify(along[number]) for number in (0, 1, 0, 0)]
    parameters = _parameters(lowering, [*scales, zero], sizes)
    return lowering.compute(build, [sums, *parameters], "requantize")[0]


def _convert_qlinear_matmul(lowering: Lowering, node: ir.Node) -> Any:
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = (required_input(node, n) for n in range(8))
    sums = _product(lowering, a, b, [a_zero, b_zero])
    return _requantized(lowering, sums, [a_scale, b_scale, y_scale], y_zero, (-2, -1))


def _convolution(
    lowering: Lowering, node: ir.Node, x: ir.Value, w: ir.Value, zeros: list[ir.Value | None]
) -> relax.Var:
    """As int32; padding is with the zero point of ``x``, the other one is for all or per output channel."""
    sizes, window = lowering.dimensions(x), lowering.dimensions(w)
    if len(sizes) < 3 or not all(isinstance(size, int) for size in window):
        raise UnsupportedError(
            f"data of shape {sizes}, weights of shape {window}; expected spatial axes, fixed weights"
        )
    windows = Windows.of(node, sizes[2:], window[2:], lowering.sizes)
    groups = group_count(node, window[0])
    channels, outputs = window[1], window[0] // groups
    shape = [lowering.sizes.expression(size) for size in (sizes[0], window[0], *windows.counts)]
    parameters = _parameters(lowering, zeros, [sizes[1], window[0]])
    data_in = lowering.tensor_of_shape(x, [sizes[0], channels * groups, *sizes[2:]])

    def build(data: te.Tensor, weights: te.Tensor, *points: te.Tensor) -> te.Tensor:
        remaining = iter(points)
        x_zero, w_zero = (None if zero is None else next(remaining) for zero in zeros)
        channel = te.reduce_axis((0, channels), name="c")
        inner = [te.reduce_axis((0, size), name=f"k{axis}") for axis, size in enumerate(windows.kernel)]

        def element(n: tirx.Expr, output: tirx.Expr, *at: tirx.Expr) -> tirx.Expr:
            places = windows.positions(at, [axis.var for axis in inner])
            source = tirx.floordiv(output, outputs) * channels + channel.var
            number = _integer(data(n, source, *places), None if x_zero is None else _at(x_zero, source))
            weight = _integer(weights(output, channel, *inner), None if w_zero is None else _at(w_zero, output))
            zero = tirx.const(0, "int32")
            return te.sum(
                tirx.if_then_else(all_inside(places, sizes[2:]), number, zero) * weight, axis=[channel, *inner]
            )

        return te.compute(shape, element, name="convolution")

    return lowering.compute(build, [data_in, lowering.tensor(w), *parameters], "integer_convolution")[0]


def _convert_conv_integer(lowering: Lowering, node: ir.Node) -> Any:
    zeros = [optional_input(node, 2), optional_input(node, 3)]
    return _convolution(lowering, node, required_input(node, 0), required_input(node, 1), zeros)


def _convert_qlinear_conv(lowering: Lowering, node: ir.Node) -> Any:
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero = (required_input(node, n) for n in range(8))
    sums = _convolution(lowering, node, x, w, [x_zero, w_zero])
    bias = optional_input(node, 8)
    if bias is not None:
        (sums,) = lowering.compute(
            lambda total, added: te.compute(total.shape, lambda *at: total(*at) + added(at[1]), name="bias"),
            [sums, lowering.tensor_of_shape(bias, [lowering.dimensions(w)[0]])],
            "bias",
        )
    return _requantized(lowering, sums, [x_scale, w_scale, y_scale], y_zero, (1, 1))


CONVERTERS: dict[str, Converter] = {
    "ConvInteger": _convert_conv_integer,
    "MatMulInteger": _convert_matmul_integer,
    "QLinearConv": _convert_qlinear_conv,
    "QLinearMatMul": _convert_qlinear_matmul,
}
