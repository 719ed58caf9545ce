"""Transposed convolution, and sampling of images on a grid."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import onnx_ir as ir
from tvm import te, tirx

from moec.common.errors import UnsupportedError
from moec.targets.tvm.lowering.attributes import attribute, group_count, optional_input, required_input, steps
from moec.targets.tvm.lowering.lowering import Converter, Lowering
from moec.targets.tvm.onnx.resize import cubic


def _convert_conv_transpose(lowering: Lowering, node: ir.Node) -> Any:
    """Transposed convolution: each element of the result sums the contributions of the windows that cover it."""
    x, w, bias = required_input(node, 0), required_input(node, 1), optional_input(node, 2)
    sizes, window = lowering.dimensions(x), lowering.dimensions(w)
    rank = len(sizes) - 2
    if rank < 1 or not all(isinstance(size, int) for size in window):
        raise UnsupportedError(
            f"data of shape {sizes}, weights of shape {window}; expected spatial axes, fixed weights"
        )
    groups = group_count(node, window[0])
    strides, dilations = steps(node, "strides", rank), steps(node, "dilations", rank)
    before, counts = _transposed_sizes(lowering, node, sizes[2:], window[2:])
    inputs, outputs = window[0] // groups, window[1]
    shape = [lowering.sizes.expression(size) for size in (sizes[0], outputs * groups, *counts)]
    dtype = lowering.dtype(x)
    wide = "float32" if dtype in ("float16", "bfloat16") else dtype

    def build(data: te.Tensor, weights: te.Tensor, *added: te.Tensor) -> te.Tensor:
        channel = te.reduce_axis((0, inputs), name="c")
        inner = [te.reduce_axis((0, size), name=f"k{axis}") for axis, size in enumerate(window[2:])]

        def element(n: tirx.Expr, output: tirx.Expr, *at: tirx.Expr) -> tirx.Expr:
            source = tirx.floordiv(output, outputs) * inputs + channel.var
            places, covered = [], []
            for axis in range(rank):
                distance = at[axis] + before[axis] - inner[axis].var * dilations[axis]
                place = tirx.floordiv(distance, strides[axis])
                places.append(place)
                covered += [tirx.EQ(place * strides[axis], distance), place >= 0, place < sizes[axis + 2]]
            number = data(n, source, *places).astype(wide)
            weight = weights(source, tirx.floormod(output, outputs), *inner).astype(wide)
            return te.sum(
                tirx.if_then_else(tirx.all(*covered), number * weight, tirx.const(0, wide)), axis=[channel, *inner]
            )

        total = te.compute(shape, element, name="conv_transpose")

        def finished(*at: tirx.Expr) -> tirx.Expr:
            sum_ = total(*at) + added[0](at[1]).astype(wide) if added else total(*at)
            return sum_.astype(dtype)

        return te.compute(shape, finished, name="result")

    data = lowering.tensor_of_shape(x, [sizes[0], window[0], *sizes[2:]])
    added = [] if bias is None else [lowering.tensor_of_shape(bias, [outputs * groups])]
    return lowering.compute(build, [data, lowering.tensor(w), *added], "conv_transpose")[0]


def _transposed_sizes(
    lowering: Lowering, node: ir.Node, spatial: list[Any], kernel: list[int]
) -> tuple[list[Any], list[Any]]:
    """Padding in front and the sizes of the result, by the formulas of ONNX's ConvTranspose."""
    rank = len(kernel)
    strides, dilations = steps(node, "strides", rank), steps(node, "dilations", rank)
    added = attribute(node, "output_padding", [0] * rank)
    pads = list(attribute(node, "pads", [0] * 2 * rank))
    automatic, target = attribute(node, "auto_pad", "NOTSET"), attribute(node, "output_shape")
    simplify = lowering.sizes.simplify
    whole = [
        simplify((size - 1) * strides[axis] + added[axis] + (kernel[axis] - 1) * dilations[axis] + 1)
        for axis, size in enumerate(spatial)
    ]
    if target is None and automatic in ("NOTSET", "VALID"):
        pads = pads if automatic == "NOTSET" else [0] * 2 * rank
        return pads[:rank], [simplify(whole[axis] - pads[axis] - pads[axis + rank]) for axis in range(rank)]
    if target is None:
        target = [simplify(size * strides[axis]) for axis, size in enumerate(spatial)]
    totals = [lowering.sizes.at_least(simplify(whole[axis] - target[axis]), 0) for axis in range(rank)]
    halves = [total // 2 if isinstance(total, int) else simplify(tirx.floordiv(total, 2)) for total in totals]
    if automatic != "SAME_UPPER":
        halves = [simplify(total - half) for total, half in zip(totals, halves, strict=True)]
    return halves, list(target)


def _convert_grid_sample(lowering: Lowering, node: ir.Node) -> Any:
    """Jaderberg et al., "Spatial transformer networks" (arXiv 1506.02025), with the modes of ONNX's GridSample."""
    x, grid = required_input(node, 0), required_input(node, 1)
    sizes, places = lowering.dimensions(x), lowering.dimensions(grid)
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(mode_name := attribute(node, "mode", "linear"), mode_name)
    padding, corners = attribute(node, "padding_mode", "zeros"), bool(attribute(node, "align_corners", 0))
    rank = len(sizes) - 2
    if rank not in (2, 3) or mode not in ("nearest", "linear", "cubic"):
        raise UnsupportedError(f"{rank} spatial axes in mode {mode}; expected 2 or 3, nearest, linear or cubic")
    shape = [lowering.sizes.expression(size) for size in (*sizes[:2], *places[1:-1])]
    dtype = lowering.dtype(x)
    wide = "float64" if dtype == "float64" else "float32"

    def build(source: te.Tensor, points: te.Tensor) -> te.Tensor:
        def sample(n: tirx.Expr, c: tirx.Expr, indices: tuple[tirx.Expr, ...]) -> tirx.Expr:
            """An element, by integer places that may lie outside."""
            if padding != "zeros":
                inside = [
                    _padded(index, size, padding, corners) for index, size in zip(indices, sizes[2:], strict=True)
                ]
                return source(n, c, *inside).astype(wide)
            here = [tirx.all(index >= 0, index < size) for index, size in zip(indices, sizes[2:], strict=True)]
            return tirx.if_then_else(tirx.all(*here), source(n, c, *indices).astype(wide), tirx.const(0, wide))

        def element(n: tirx.Expr, c: tirx.Expr, *at: tirx.Expr) -> tirx.Expr:
            along = []
            for axis, size in enumerate(sizes[2:]):
                coordinate = points(n, *at, rank - 1 - axis).astype(
                    wide
                )  # the last coordinate is that of the first axis
                along.append(_weights(_denormalized(coordinate, size, corners), mode))
            parts = []
            for chosen in itertools.product(*along):
                weight = functools.reduce(lambda left, right: left * right, (factor for _, factor in chosen))
                parts.append(sample(n, c, tuple(index for index, _ in chosen)) * weight)
            return functools.reduce(lambda left, right: left + right, parts).astype(dtype)

        return te.compute(shape, element, name="grid_sample")

    points = lowering.tensor_of_shape(grid, [sizes[0], *places[1:-1], rank])
    return lowering.compute(build, [lowering.tensor(x), points], "grid_sample")[0]


def _denormalized(place: tirx.Expr, size: Any, corners: bool) -> tirx.Expr:
    """From [-1, 1] to elements; -1 and 1 are the centres of the outer ones or, without ``corners``, their edges."""
    dtype = place.ty.dtype
    unit, length = tirx.const(1, dtype), tirx.const(0, dtype) + size if isinstance(size, int) else size.astype(dtype)
    if corners:
        return (place + unit) / tirx.const(2, dtype) * (length - unit)
    return ((place + unit) * length - unit) / tirx.const(2, dtype)


def _weights(place: tirx.Expr, mode: str) -> list[tuple[tirx.Expr, tirx.Expr]]:
    dtype = place.ty.dtype
    unit = tirx.const(1, dtype)
    if mode == "nearest":
        return [(_index(tirx.nearbyint(place)), unit)]
    below = tirx.floor(place)
    distance, first = place - below, _index(below)
    if mode == "linear":
        return [(first, unit - distance), (first + 1, distance)]
    return [(first + offset, weight) for offset, weight in zip((-1, 0, 1, 2), cubic(distance, -0.75), strict=True)]


def _index(place: tirx.Expr) -> tirx.Expr:
    """Convert a position to an integer; far outside and NaN become just outside."""
    far = tirx.const(1 << 30, place.ty.dtype)
    return tirx.Select(tirx.abs(place) < far, place, -far).astype("int64")


def _padded(index: tirx.Expr, size: Any, padding: str, corners: bool) -> tirx.Expr:
    """An index inside: the nearest one (border), or mirrored at centres or edges of the outer elements (reflection)."""
    if padding == "reflection":
        period = tirx.max(2 * size - 2 if corners else 2 * size, 1)
        turned = tirx.floormod(index, period)
        mirrored = period - turned if corners else period - 1 - turned
        index = tirx.Select(turned < size, turned, mirrored)
    return tirx.max(tirx.min(index, size - 1), tirx.IntImm("int64", 0))


CONVERTERS: dict[str, Converter] = {"ConvTranspose": _convert_conv_transpose, "GridSample": _convert_grid_sample}
