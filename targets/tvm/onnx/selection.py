"""Operators that choose or reorder elements by conditions, lengths and diagonals."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from tvm import te, tirx

from moec.common.errors import UnsupportedError
from moec.targets.tvm.lowering.attributes import attribute, normalized_axis, required_input
from moec.targets.tvm.lowering.constants import dtype_name
from moec.targets.tvm.lowering.lowering import Converter, Lowering


def _convert_compress(lowering: Lowering, node: ir.Node) -> Any:
    """The slices along an axis, or elements where there is none, whose condition holds; those without one are left."""
    value, condition = required_input(node, 0), required_input(node, 1)
    axis = attribute(node, "axis")
    if axis is None:
        total = lowering.sizes.product(lowering.dimensions(value))
        value, axis = lowering.value_of(lowering.reshape(lowering.tensor(value), [total])), 0
    (chosen,) = lowering.convert_as("NonZero", [condition], {})
    (count,) = lowering.emit(chosen).ty.shape.values[1:]
    indices = lowering.value_of(lowering.reshape(lowering.emit(chosen), [count]))
    return lowering.convert_as("Gather", [value, indices], {"axis": axis})


def _convert_eye_like(lowering: Lowering, node: ir.Node) -> Any:
    value, offset = required_input(node, 0), attribute(node, "k", 0)
    dtype_number = attribute(node, "dtype")
    dtype = lowering.dtype(value) if dtype_number is None else dtype_name(ir.DataType(dtype_number))
    shape = lowering.shape(value)
    if len(shape) != 2:
        raise UnsupportedError(f"the input has {len(shape)} axes; expected a matrix")

    def element(row: tirx.Expr, column: tirx.Expr) -> tirx.Expr:
        return tirx.Select(
            tirx.EQ(column - row, tirx.IntImm("int64", offset)), tirx.const(1, dtype), tirx.const(0, dtype)
        )

    return lowering.compute(lambda: te.compute(shape, element, name="eye"), [], "eye")[0]


def _convert_reverse_sequence(lowering: Lowering, node: ir.Node) -> Any:
    value, lengths = required_input(node, 0), required_input(node, 1)
    sizes = lowering.dimensions(value)
    rank = len(sizes)
    time = normalized_axis(attribute(node, "time_axis", 0), rank)
    batch = normalized_axis(attribute(node, "batch_axis", 1), rank)

    counts = lowering.tensor_of_shape(lengths, [sizes[batch]])

    def build(source: te.Tensor, length: te.Tensor) -> te.Tensor:
        def element(*at: tirx.Expr) -> tirx.Expr:
            own = tirx.min(length(at[batch]).astype("int64"), source.shape[time])
            place = tirx.Select(at[time] < own, own - 1 - at[time], at[time])
            return source(*(place if axis == time else index for axis, index in enumerate(at)))

        return te.compute(source.shape, element, name="reverse_sequence")

    return lowering.compute(build, [lowering.tensor(value), counts], "reverse_sequence")[0]


CONVERTERS: dict[str, Converter] = {
    "Compress": _convert_compress,
    "EyeLike": _convert_eye_like,
    "ReverseSequence": _convert_reverse_sequence,
}
