"""Resize: samples of a tensor at other places, by nearest neighbour, linear or cubic interpolation."""

from __future__ import annotations

import functools
import math
from typing import Any

import onnx_ir as ir
from tvm import te, tirx

from moec.common.errors import UnsupportedError
from moec.targets.tvm.lowering.attributes import attribute, normalized_axis, optional_input, required_input
from moec.targets.tvm.lowering.lowering import Converter, Lowering
from moec.targets.tvm.sizes.symbolic import FAR


def _float(value: Any) -> tirx.Expr:
    return value.astype("float32") if isinstance(value, tirx.Expr) else tirx.const(float(value), "float32")


class _Axis:
    """One axis that is resized: its sizes before and after, the scale, and the part of it that is looked at."""

    def __init__(self, size: Any, result: Any, scale: tirx.Expr, scaled: bool, start: Any, end: Any) -> None:
        self.size, self.result, self.start, self.end = size, result, start, end
        self.scale, self.scaled = scale, scaled  # whether the scale was given, and not the size

    def place(self, index: tirx.Expr, mode: str) -> tirx.Expr:
        """The coordinate before resizing (attribute coordinate_transformation_mode), in float32."""
        x, half = _float(index), _float(0.5)
        length, resized = _float(self.size), _float(self.result)
        if mode == "half_pixel":
            return (x + half) / self.scale - half
        if mode == "half_pixel_symmetric":
            adjustment = resized / (self.scale * length)
            offset = length / _float(2) * (_float(1) - adjustment)
            return offset + (x + half) / self.scale - half
        if mode == "pytorch_half_pixel":
            return tirx.Select(resized > _float(1), (x + half) / self.scale - half, _float(0))
        if mode == "align_corners":
            span = self.scale * length if self.scaled else resized  # not rounded, as in ONNX's reference
            return tirx.if_then_else(span > _float(1), x * (length - _float(1)) / _some(span - _float(1)), _float(0))
        if mode == "asymmetric":
            return x / self.scale
        if mode == "tf_crop_and_resize":
            span = (self.end - self.start) * (length - _float(1))
            inside = self.start * (length - _float(1)) + x * span / _some(resized - _float(1))
            middle = _float(0.5) * (self.start + self.end) * (length - _float(1))
            return tirx.Select(resized > _float(1), inside, middle)
        raise UnsupportedError(f"coordinate_transformation_mode {mode!r} is not one of ONNX's")


def _some(divisor: tirx.Expr) -> tirx.Expr:
    """The divisor, but never 0, by which TVM divides no constant even where nobody looks at the quotient."""
    return tirx.max(divisor, _float(1e-30))


def _nearest(place: tirx.Expr, mode: str) -> tirx.Expr:
    half = _float(0.5)
    rounded = {
        "round_prefer_floor": lambda: tirx.ceil(place - half),
        "round_prefer_ceil": lambda: tirx.floor(place + half),
        "floor": lambda: tirx.floor(place),
        "ceil": lambda: tirx.ceil(place),
    }
    return rounded[mode]().astype("int64")


def cubic(distance: tirx.Expr, a: float) -> list[tirx.Expr]:
    """Weights of the four neighbours (Keys, "Cubic convolution interpolation", 1981)."""

    def number(value: float) -> tirx.Expr:
        return tirx.const(value, distance.ty.dtype)

    unit, two = number(1), number(2)

    def near(d: tirx.Expr) -> tirx.Expr:
        return (number(a + 2) * d - number(a + 3)) * d * d + unit

    def far(d: tirx.Expr) -> tirx.Expr:
        return ((number(a) * d - number(5 * a)) * d + number(8 * a)) * d - number(4 * a)

    return [far(distance + unit), near(distance), near(unit - distance), far(two - distance)]


def _samples(place: tirx.Expr, node: ir.Node) -> list[tuple[tirx.Expr, tirx.Expr]]:
    """Indices, which may lie outside, and weights along one axis."""
    mode = attribute(node, "mode", "nearest")
    if mode == "nearest":
        return [(_nearest(place, attribute(node, "nearest_mode", "round_prefer_floor")), _float(1))]
    below = tirx.floor(place)
    distance, first = place - below, below.astype("int64")
    if attribute(node, "antialias", 0):
        raise UnsupportedError("antialias is not supported; expected 0")
    if mode == "linear":
        return [(first, _float(1) - distance), (first + 1, distance)]
    if mode != "cubic":
        raise UnsupportedError(f"mode {mode!r} is not one of ONNX's")
    weights = cubic(distance, attribute(node, "cubic_coeff_a", -0.75))
    samples = [(first + offset, weight) for offset, weight in zip((-1, 0, 1, 2), weights, strict=True)]
    if attribute(node, "exclude_outside", 0):
        raise UnsupportedError("exclude_outside is not supported; expected 0")
    return samples


def _convert_resize(lowering: Lowering, node: ir.Node) -> Any:
    value = required_input(node, 0)
    sizes = lowering.dimensions(value)
    axes = [normalized_axis(named, len(sizes)) for named in attribute(node, "axes", range(len(sizes)))]
    mode = attribute(node, "coordinate_transformation_mode", "half_pixel")
    cropped = mode == "tf_crop_and_resize"
    scales, target = optional_input(node, 2), optional_input(node, 3)
    operands = [required_input(node, 1)] if cropped else []
    for region in operands:
        _check_count(lowering, region, 2 * len(axes))
    common = None
    if target is None:
        operands.append(required_input(node, 2) if scales is None else scales)
        _check_count(lowering, operands[-1], len(axes))
        results = _sizes_by_scales(lowering, operands, [sizes[a] for a in axes], cropped)
    else:
        wished = lowering.runtime_sizes(target)
        _check_count(lowering, target, len(axes))
        common = _policy_scale(lowering, node, [sizes[a] for a in axes], wished)
        results = wished if common is None else _sizes_of(lowering, common, [sizes[a] for a in axes])
    dtype, fill = lowering.dtype(value), float(attribute(node, "extrapolation_value", 0.0))
    shape = [lowering.sizes.expression(size) for size in sizes]
    for axis, result in zip(axes, results, strict=True):
        shape[axis] = lowering.sizes.expression(result)

    def build(source: te.Tensor, *parameters: te.Tensor) -> te.Tensor:
        resized = {}
        for number, axis in enumerate(axes):
            if target is None:
                scale = _float(parameters[-1](number))
            elif common is None:
                scale = _float(shape[axis]) / _float(lowering.sizes.expression(sizes[axis]))
            else:
                scale = common
            region = (parameters[0](number), parameters[0](number + len(axes))) if cropped else (0.0, 1.0)
            resized[axis] = _Axis(sizes[axis], shape[axis], scale, target is None, *map(_float, region))

        def element(*at: tirx.Expr) -> tirx.Expr:
            places = {number: axis.place(at[number], mode) for number, axis in resized.items()}
            samples = [(number, _samples(place, node)) for number, place in places.items()]
            total = _weighted(source, list(at), sizes, samples)
            if not cropped:
                return total.astype(dtype)
            inside = [tirx.all(p >= _float(0), p <= _float(resized[n].size - 1)) for n, p in places.items()]
            return tirx.if_then_else(tirx.all(*inside), total.astype("float32"), _float(fill)).astype(dtype)

        return te.compute(shape, element, name="resize")

    tensors = [lowering.tensor(operand) for operand in (value, *operands)]
    return lowering.compute(build, tensors, "resize")[0]


def _weighted(source: te.Tensor, at: list[tirx.Expr], sizes: list[Any], samples: list[Any]) -> tirx.Expr:
    """The weighted sum over the samples of all axes; one of weight 1 has the element itself."""
    if not samples:
        return source(*at)
    number, along = samples[0]
    parts = []
    for index, weight in along:
        inside = tirx.max(tirx.min(index, sizes[number] - 1), tirx.IntImm("int64", 0))
        part = _weighted(source, [*at[:number], inside, *at[number + 1 :]], sizes, samples[1:])
        parts.append(part if len(along) == 1 else part.astype("float32") * weight)
    return functools.reduce(lambda left, right: left + right, parts)


def _check_count(lowering: Lowering, value: ir.Value, count: int) -> None:
    """Raise UnsupportedError unless a value, of which kernels read ``count`` numbers, is known to have so many."""
    actual = lowering.dimensions(value)
    if actual != [count]:
        raise UnsupportedError(f"{value.name!r} has the shape {actual}; expected {[count]}")


def _sizes_by_scales(lowering: Lowering, operands: list[ir.Value], sizes: list[Any], cropped: bool) -> list[Any]:
    """``floor(size * part * scale)`` for each axis; the scales are the last operand, the region the first.

    At run time, a size beyond any memory becomes a bound on sizes, and a negative one is refused.
    """
    constants = [lowering.constant(operand) for operand in operands]
    if all(constant is not None for constant in constants) and all(isinstance(size, int) for size in sizes):
        count = len(sizes)
        parts = [constants[0][count + i] - constants[0][i] if cropped else 1.0 for i in range(count)]  # type: ignore[index]
        return [
            math.floor(size * float(part) * float(scale))
            for size, part, scale in zip(sizes, parts, constants[-1], strict=True)  # type: ignore[arg-type]
        ]

    def build(*tensors: te.Tensor) -> te.Tensor:
        def element(position: tirx.Expr) -> tirx.Expr:
            result: Any = tirx.IntImm("int64", 0)
            for number, size in enumerate(sizes):
                length = lowering.sizes.expression(size).astype("float64") * tensors[-1](number).astype("float64")
                if cropped:
                    part = tensors[0](number + len(sizes)) - tensors[0](number)
                    length = length * part.astype("float64")
                rounded = tirx.floor(tirx.min(length, tirx.FloatImm("float64", float(FAR)))).astype("int64")
                result = tirx.if_then_else(position == number, rounded, result)
            return result

        return te.compute((len(sizes),), element, name="sizes")

    (vector,) = lowering.compute(build, [lowering.tensor(operand) for operand in operands], "resized")
    return lowering.runtime_sizes(lowering.value_of(vector))


def _policy_scale(lowering: Lowering, node: ir.Node, sizes: list[Any], target: list[Any]) -> tirx.Expr | None:
    """The one scale of all axes that keep_aspect_ratio_policy asks for; None where each axis has its own."""
    policy = attribute(node, "keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        return None
    ratios = [
        _float(lowering.sizes.expression(want)) / _float(lowering.sizes.expression(size))
        for want, size in zip(target, sizes, strict=True)
    ]
    return functools.reduce(tirx.min if policy == "not_larger" else tirx.max, ratios)


def _sizes_of(lowering: Lowering, scale: tirx.Expr, sizes: list[Any]) -> list[Any]:
    """``size * scale`` for each axis, rounded."""

    def element(position: tirx.Expr) -> tirx.Expr:
        result: Any = tirx.IntImm("int64", 0)
        for number, size in enumerate(sizes):
            length = tirx.floor(scale * _float(lowering.sizes.expression(size)) + _float(0.5)).astype("int64")
            result = tirx.if_then_else(position == number, length, result)
        return result

    (vector,) = lowering.compute(lambda: te.compute((len(sizes),), element, name="sizes"), [], "resized")
    return lowering.runtime_sizes(lowering.value_of(vector))


CONVERTERS: dict[str, Converter] = {"Resize": _convert_resize}
