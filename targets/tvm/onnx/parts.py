"""Operators that take parts of a tensor along its axes, or put parts side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from tvm import relax, te, tirx

from moec.common.errors import UnsupportedError
from moec.targets.tvm.kernels.te_kernels import Requirement
from moec.targets.tvm.lowering.attributes import attribute, normalized_axis, optional_input, required_input
from moec.targets.tvm.lowering.lowering import Converter, Lowering
from moec.targets.tvm.sizes.symbolic import StaticValue

INT64_MAXIMUM = (1 << 63) - 1


def _convert_concat(lowering: Lowering, node: ir.Node) -> Any:
    values = [required_input(node, position) for position in range(len(node.inputs))]
    shapes = [lowering.dimensions(value) for value in values]
    axis = normalized_axis(attribute(node, "axis"), len(shapes[0]))
    static = [part for value in values if (part := lowering.static(value)) is not None]
    if len(static) == len(values):
        return StaticValue(np.concatenate([part.elements for part in static], axis), static[0].dtype)
    cached = lowering.paged(values[0])
    if cached is not None and cached.continued is node.outputs[0]:
        return lowering.appended(node, cached, lowering.tensor(values[1]))
    common, needed = _common_sizes(lowering, shapes, axis)
    ends: list[Any] = []
    for shape in shapes:
        ends.append(lowering.sizes.simplify((ends[-1] if ends else 0) + shape[axis]))
    sizes = [lowering.sizes.expression(ends[-1] if a == axis else size) for a, size in enumerate(common)]

    def build(*parts: te.Tensor) -> te.Tensor:
        def element(*indices: tirx.Expr) -> tirx.Expr:
            def at(part: te.Tensor, start: Any) -> tirx.Expr:
                return part(*(index - start if a == axis else index for a, index in enumerate(indices)))

            def among(first: int, last: int) -> tirx.Expr:
                """Select one of these parts by halves: a thousand parts nest ten selections deep."""
                if first == last:
                    return at(parts[first], ends[first - 1] if first else 0)
                middle = (first + last) // 2
                return tirx.if_then_else(indices[axis] < ends[middle], among(first, middle), among(middle + 1, last))

            return among(0, len(parts) - 1)

        return te.compute(sizes, element, name="concat")

    return lowering.compute(build, [lowering.tensor(value) for value in values], "concat", needed)


def _common_sizes(
    lowering: Lowering, shapes: Sequence[Sequence[Any]], joined: int
) -> tuple[list[Any], list[Requirement]]:
    """The sizes of the parts on all axes but the joined one, and that they are equal."""
    common, needed = list(shapes[0]), []
    for axis in (axis for axis in range(len(common)) if axis != joined):
        common[axis] = next((shape[axis] for shape in shapes if isinstance(shape[axis], int)), common[axis])
        for number, shape in enumerate(shapes):
            same = lowering.sizes.same(shape[axis], common[axis])
            actual = f"input {number} has size {shape[axis]} on axis {axis}"
            needed += lowering.require(same, actual, f"{common[axis]}, as the others have")
    return common, needed


def _convert_slice(lowering: Lowering, node: ir.Node) -> Any:
    value = required_input(node, 0)
    sizes = lowering.dimensions(value)
    starts = lowering.runtime_integers(required_input(node, 1))
    ends = lowering.runtime_integers(required_input(node, 2))
    axes = lowering.numbers(optional_input(node, 3), "the axes") or list(range(len(starts)))
    steps = lowering.numbers(optional_input(node, 4), "the steps") or [1] * len(starts)
    if len({len(starts), len(ends), len(axes), len(steps)}) > 1:
        actual = f"{len(starts)} starts, {len(ends)} ends, {len(axes)} axes and {len(steps)} steps"
        raise UnsupportedError(f"it has {actual}; expected as many of each")
    begins: list[Any] = [0] * len(sizes)
    strides = [1] * len(sizes)
    result = list(sizes)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        axis = normalized_axis(axis, len(sizes))
        begins[axis], result[axis] = _slice_range(lowering, sizes[axis], start, end, step)
        strides[axis] = step
    static = lowering.static(value)
    if static is not None and all(isinstance(number, int) for number in (*begins, *result)):
        picks = [b + s * np.arange(n) for b, s, n in zip(begins, strides, result, strict=True)]
        return StaticValue(static.elements[np.ix_(*picks)] if picks else static.elements, static.dtype)
    if strides == [1] * len(sizes) and all(map(lowering.sizes.equal, sizes, result)):
        return lowering.tensor(value)
    return take_range(lowering, lowering.tensor(value), begins, strides, result)


def take_range(
    lowering: Lowering,
    tensor: relax.Expr,
    begins: Sequence[Any],
    strides: Sequence[int],
    sizes: Sequence[Any],
    requirements: Sequence[Requirement] = (),
) -> relax.Var:
    """Elements ``begin + stride * i`` for i below the size, per axis."""
    shape = [lowering.sizes.expression(size) for size in sizes]

    def build(source: te.Tensor) -> te.Tensor:
        def element(*indices: tirx.Expr) -> tirx.Expr:
            return source(*(b + i * s for b, i, s in zip(begins, indices, strides, strict=True)))

        return te.compute(shape, element, name="slice")

    return lowering.compute(build, [tensor], "slice", requirements)[0]


def _slice_range(lowering: Lowering, size: Any, start: Any, end: Any, step: int) -> tuple[Any, Any]:
    """First index and number of elements of one sliced axis (the rules of ONNX Slice; a negative step walks back)."""
    if step == 0:
        raise UnsupportedError("a Slice step is 0; expected a positive or negative step")
    clamp, simplify = lowering.sizes.clamp, lowering.sizes.simplify
    start, end = (_from_the_front(lowering, bound, size) for bound in (start, end))
    if step > 0:
        first, last = clamp(start, 0, size), clamp(end, 0, size)
        span = simplify(last - first)
    else:
        first, last = clamp(start, 0, simplify(size - 1)), clamp(end, -1, simplify(size - 1))
        span = simplify(first - last)
    span = clamp(span, 0, simplify(size + 0))
    magnitude = abs(step)
    if magnitude == 1:
        return first, span
    if isinstance(span, int):
        return first, -(-span // magnitude)
    return first, simplify(tirx.floordiv(span + (magnitude - 1), tirx.IntImm("int64", magnitude)))


def _from_the_front(lowering: Lowering, bound: Any, size: Any) -> Any:
    if isinstance(bound, int):
        if abs(bound) > INT64_MAXIMUM // 2:
            return size if bound > 0 else -1
        return bound if bound >= 0 else lowering.sizes.simplify(bound + size)
    negative = lowering.sizes.less(bound, 0)
    if negative is False:
        return bound
    if negative:
        return lowering.sizes.simplify(bound + size)
    return lowering.sizes.simplify(tirx.if_then_else(bound < 0, bound + size, bound))


def _convert_split(lowering: Lowering, node: ir.Node) -> Any:
    value = required_input(node, 0)
    sizes = lowering.dimensions(value)
    axis = normalized_axis(attribute(node, "axis", 0), len(sizes))
    operand = optional_input(node, 1)
    lengths = (
        _equal_parts(lowering, sizes[axis], len(node.outputs)) if operand is None else lowering.runtime_sizes(operand)
    )
    total = sum(lengths[1:], start=lengths[0]) if lengths else 0
    needed = lowering.require(
        lowering.sizes.same(lowering.sizes.simplify(total), sizes[axis]),
        f"parts of {lengths} of size {sizes[axis]} on axis {axis}",
        "parts that add up to it",
    )
    static = lowering.static(value)
    parts, start = [], 0
    for length in lengths:
        if static is not None and isinstance(start, int) and isinstance(length, int):
            parts.append(StaticValue(static.elements.take(range(start, start + length), axis), static.dtype))
        else:
            begins = [start if a == axis else 0 for a in range(len(sizes))]
            result = [length if a == axis else size for a, size in enumerate(sizes)]
            parts.append(take_range(lowering, lowering.tensor(value), begins, [1] * len(sizes), result, needed))
        start = lowering.sizes.simplify(start + length)
    return parts


def _equal_parts(lowering: Lowering, size: Any, count: int) -> list[Any]:
    if isinstance(size, int):
        part = -(-size // count)
    else:
        part = lowering.sizes.simplify(tirx.floordiv(size + (count - 1), tirx.IntImm("int64", count)))
    clamp = lowering.sizes.clamp
    return [clamp(lowering.sizes.simplify(size - part * number), 0, part) for number in range(count)]


CONVERTERS: dict[str, Converter] = {
    "Concat": _convert_concat,
    "Slice": _convert_slice,
    "Split": _convert_split,
}
