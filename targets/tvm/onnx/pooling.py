"""Pooling: a reduction over windows. 16-bit floats are summed in float32."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import onnx_ir as ir
from tvm import te, tirx

from moec.common.errors import UnsupportedError
from moec.targets.tvm.lowering.attributes import attribute, required_input
from moec.targets.tvm.lowering.lowering import Converter, Lowering
from moec.targets.tvm.onnx.windows import Windows, all_inside


def _windows(lowering: Lowering, node: ir.Node) -> tuple[Windows, list[Any]]:
    """The node's windows, and the spatial sizes that they slide over."""
    sizes = lowering.dimensions(required_input(node, 0))
    if len(sizes) < 3:
        raise UnsupportedError(f"the input has {len(sizes)} axes; expected N, C and spatial ones")
    kernel = [int(size) for size in attribute(node, "kernel_shape")]
    return Windows.of(node, sizes[2:], kernel, lowering.sizes), sizes[2:]


def _pooled(
    lowering: Lowering,
    node: ir.Node,
    combine: Callable[..., Any],
    element: Callable[[tirx.Expr], tirx.Expr],
    outside: Callable[[str], tirx.Expr],
    finish: Callable[..., tirx.Expr],
) -> Any:
    """Reduce ``element(x)`` over each window by ``combine``, then apply ``finish(total, *position)``.

    Positions in the padding count as ``outside(dtype)``."""
    value = required_input(node, 0)
    windows, spatial = _windows(lowering, node)
    dtype = lowering.dtype(value)
    wide = "float32" if dtype in ("float16", "bfloat16") else dtype

    def build(source: te.Tensor) -> te.Tensor:
        inner = [te.reduce_axis((0, size), name=f"k{axis}") for axis, size in enumerate(windows.kernel)]
        shape = [*source.shape[:2], *(lowering.sizes.expression(count) for count in windows.counts)]

        def reduced(n: tirx.Expr, c: tirx.Expr, *outputs: tirx.Expr) -> Any:
            places = windows.positions(outputs, [axis.var for axis in inner])
            here = tirx.if_then_else(
                all_inside(places, spatial), element(source(n, c, *places).astype(wide)), outside(wide)
            )
            return combine(here, axis=inner)

        total = te.compute(shape, reduced, name="windows")
        return te.compute(shape, lambda *at: finish(total(*at), *at[2:]).astype(dtype), name="pool")

    return lowering.compute(build, [lowering.tensor(value)], node.op_type.lower())[0]


def _zero(dtype: str) -> tirx.Expr:
    return tirx.const(0, dtype)


def _lowest(dtype: str) -> tirx.Expr:
    return tirx.const(-math.inf, dtype) if "float" in dtype else te.min_value(dtype)


def _convert_average_pool(lowering: Lowering, node: ir.Node) -> Any:
    windows, spatial = _windows(lowering, node)
    padded = bool(attribute(node, "count_include_pad", 0))

    def seen(axis: int, output: tirx.Expr) -> Any:
        """Number of a window's positions along one axis that the mean counts; in the padding only where ``padded``."""
        start = output * windows.strides[axis] - windows.before[axis]
        low, high = (-windows.before[axis], spatial[axis] + windows.after[axis]) if padded else (0, spatial[axis])
        dilation, size = windows.dilations[axis], windows.kernel[axis]
        first = tirx.max(tirx.floordiv(low - start + dilation - 1, dilation), 0)
        last = tirx.min(tirx.floordiv(high - 1 - start, dilation), size - 1)
        return last - first + 1

    def mean(total: tirx.Expr, *outputs: tirx.Expr) -> tirx.Expr:
        count: Any = tirx.IntImm("int64", 1)
        for axis, output in enumerate(outputs):
            count = count * seen(axis, output)
        return total / tirx.max(count, tirx.IntImm("int64", 1)).astype(total.ty.dtype)

    return _pooled(lowering, node, te.sum, lambda x: x, _zero, mean)


def _convert_lp_pool(lowering: Lowering, node: ir.Node) -> Any:
    power = attribute(node, "p", 2)
    if not 1 <= power <= 16:
        raise UnsupportedError(f"p is {power}; expected 1 to 16")

    def element(x: tirx.Expr) -> tirx.Expr:
        return math.prod([tirx.abs(x)] * (power - 1), start=tirx.abs(x))

    def finish(total: tirx.Expr, *_: tirx.Expr) -> tirx.Expr:
        return total if power == 1 else tirx.pow(total, tirx.const(1 / power, total.ty.dtype))

    return _pooled(lowering, node, te.sum, element, _zero, finish)


def _convert_max_pool(lowering: Lowering, node: ir.Node) -> Any:
    if len(node.outputs) > 1 and (node.outputs[1].uses() or node.outputs[1].is_graph_output()):
        return _max_pool_with_indices(lowering, node)
    return _pooled(lowering, node, te.max, lambda x: x, _lowest, lambda total, *_: total)


def _max_pool_with_indices(lowering: Lowering, node: ir.Node) -> Any:
    value = required_input(node, 0)
    windows, spatial = _windows(lowering, node)
    columns_first = bool(attribute(node, "storage_order", 0))
    dtype = lowering.dtype(value)

    def combine(left: tuple, right: tuple) -> tuple:
        chosen = tirx.any(left[1] > right[1], tirx.all(tirx.EQ(left[1], right[1]), left[0] <= right[0]))
        return tirx.Select(chosen, left[0], right[0]), tirx.Select(chosen, left[1], right[1])

    def identity(index_dtype: str, value_dtype: str) -> tuple:
        return tirx.const(1 << 62, index_dtype), _lowest(value_dtype)

    reducer = te.comm_reducer(combine, identity, name="max_pool")

    def build(source: te.Tensor) -> list[te.Tensor]:
        inner = [te.reduce_axis((0, size), name=f"k{axis}") for axis, size in enumerate(windows.kernel)]
        shape = [*source.shape[:2], *(lowering.sizes.expression(count) for count in windows.counts)]

        def reduced(n: tirx.Expr, c: tirx.Expr, *outputs: tirx.Expr) -> Any:
            places = windows.positions(outputs, [axis.var for axis in inner])
            here = all_inside(places, spatial)
            index: Any = tirx.IntImm("int64", 0)
            ordered = list(zip(places, spatial, strict=True))
            for place, size in reversed(ordered) if columns_first else ordered:
                index = index * size + place
            index = index + (n * source.shape[1] + c) * lowering.sizes.product(spatial)
            return reducer(
                (
                    tirx.if_then_else(here, index, tirx.const(1 << 62, "int64")),
                    tirx.if_then_else(here, source(n, c, *places), _lowest(dtype)),
                ),
                axis=inner,
            )

        indices, values = te.compute(shape, reduced, name="max_pool")
        return [values, indices]

    return lowering.compute(build, [lowering.tensor(value)], "max_pool")


CONVERTERS: dict[str, Converter] = {
    "AveragePool": _convert_average_pool,
    "LpPool": _convert_lp_pool,
    "MaxPool": _convert_max_pool,
}
