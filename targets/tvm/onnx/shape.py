"""Operators that make, read or change shapes, and those that move or repeat all data by position."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from tvm import relax, te, tirx

from moec.common.errors import UnsupportedError
from moec.targets.tvm.lowering.attributes import attribute, normalized_axis, optional_input, required_input
from moec.targets.tvm.lowering.broadcasting import broadcast_shape, broadcast_to, requirements_of
from moec.targets.tvm.lowering.constants import dtype_name
from moec.targets.tvm.lowering.lowering import Converter, Lowering
from moec.targets.tvm.lowering.nodes import transposed_from
from moec.targets.tvm.sizes.symbolic import MAXIMUM_KNOWN_ELEMENTS, MAXIMUM_SIZE, Sizes, StaticValue


def _convert_shape(lowering: Lowering, node: ir.Node) -> Any:
    sizes = lowering.dimensions(required_input(node, 0))
    start, end = attribute(node, "start", 0), attribute(node, "end", len(sizes))
    return StaticValue.of(sizes[start:end])


def _convert_size(lowering: Lowering, node: ir.Node) -> Any:
    return StaticValue.of(lowering.sizes.product(lowering.dimensions(required_input(node, 0))))


def _convert_reshape(lowering: Lowering, node: ir.Node) -> Any:
    value = required_input(node, 0)
    source = lowering.dimensions(value)
    target = _target_sizes(lowering, source, required_input(node, 1), not attribute(node, "allowzero", 0))
    static = lowering.static(value)
    if static is not None and all(isinstance(size, int) for size in target):
        return StaticValue(static.elements.reshape(target), static.dtype)
    target, same = _settled(lowering.sizes, source, target)
    needed = lowering.require(same, f"sizes {source} cannot become {target}", "as many elements")
    return lowering.reshape(lowering.checked(lowering.tensor(value), needed), target)


def _settled(sizes: Sizes, source: list[Any], target: list[Any]) -> tuple[list[Any], Any]:
    """The target sizes, and the condition that they have as many elements as the source.

    Where all sizes except one agree, and that one is computed (``T // 16 * (T // (T // 16))``), it has to equal the
    source's remaining size, and is replaced by it."""
    for axis, size in enumerate(target):
        if isinstance(size, tirx.Mul | tirx.FloorDiv):
            (left, rest), others = sizes.cancelled(source, target[:axis] + target[axis + 1 :])
            if left == 1 and others == (1, []) and len(rest) == 1 and isinstance(rest[0], tirx.Var):
                return [*target[:axis], rest[0], *target[axis + 1 :]], sizes.same(rest[0], size)
    return target, sizes.same(sizes.product(source), sizes.product(target))


def _target_sizes(lowering: Lowering, source: list[Any], shape: ir.Value, zero_copies: bool) -> list[Any]:
    """Result sizes of a Reshape of ``source`` by the tensor ``shape``; 0 copies a size where ``zero_copies``."""
    target = lowering.runtime_integers(shape)
    if lowering.static(shape) is None:
        return _read_target(lowering, source, target, shape.name or "shape", zero_copies)
    if zero_copies:
        target = [_copied(source, axis) if _is_number(size, 0) else size for axis, size in enumerate(target)]
    elif any(_is_number(size, 0) for size in target) and any(_is_number(size, -1) for size in target):
        raise UnsupportedError(f"target shape {target} has a literal 0, so its -1 cannot be inferred; expected one")
    return _resolve_inferred(lowering, source, target)


def _is_number(size: Any, number: int) -> bool:
    return isinstance(size, int) and size == number


def _copied(source: list[Any], axis: int) -> Any:
    if axis >= len(source):
        raise UnsupportedError(f"size 0 on axis {axis} copies one that sizes {source} lack; expected a number")
    return source[axis]


def _read_target(lowering: Lowering, source: list[Any], target: list[Any], name: str, zero_copies: bool) -> list[Any]:
    """Result sizes of a Reshape by integers read at run time: 0 copies a size where ``zero_copies``, -1 is inferred."""
    expression, zero, minus = lowering.sizes.expression, tirx.IntImm("int64", 0), tirx.IntImm("int64", -1)
    total = expression(lowering.sizes.product(source))
    requested = [
        tirx.Select(tirx.EQ(size, zero), expression(source[axis]), size) if zero_copies and axis < len(source) else size
        for axis, size in enumerate(target)
    ]
    others = [_product(dim for other, dim in enumerate(requested) if other != axis) for axis in range(len(requested))]
    sizes = [
        tirx.Select(tirx.EQ(size, minus), tirx.floordiv(total, tirx.max(rest, tirx.IntImm("int64", 1))), size)
        for size, rest in zip(requested, others, strict=True)
    ]
    open_sizes = sum((tirx.EQ(size, minus).astype("int64") for size in requested), start=zero)
    elements = _product((tirx.max(size, 1).astype("float64") for size in sizes), "float64")
    no_overflow = elements <= tirx.const(float(MAXIMUM_SIZE), "float64")
    whole = tirx.EQ(_product(sizes), total)
    valid = [*(size >= -1 for size in requested), open_sizes <= 1, no_overflow, whole]
    if not zero_copies:  # beside a 0 that is meant, -1 could be any number
        zeros = sum((tirx.EQ(size, zero).astype("int64") for size in requested), start=zero)
        valid.append(tirx.any(tirx.EQ(open_sizes, zero), tirx.EQ(zeros, zero)))
    actual = f"sizes {source} cannot become those in {name!r}"
    needed = lowering.require(tirx.all(*valid), actual, "as many elements")
    return lowering.checked_sizes(sizes, needed, name)


def _product(sizes: Iterable[tirx.Expr], dtype: str = "int64") -> Any:
    return functools.reduce(operator.mul, sizes, tirx.const(1, dtype))


def _resolve_inferred(lowering: Lowering, source: list[Any], target: list[Any]) -> list[Any]:
    inferred = [axis for axis, size in enumerate(target) if isinstance(size, int) and size == -1]
    if len(inferred) > 1:
        raise UnsupportedError(f"target shape {target} has {len(inferred)} dims of -1; expected at most one")
    if inferred:
        others = [size for axis, size in enumerate(target) if axis != inferred[0]]
        target = list(target)
        target[inferred[0]] = lowering.sizes.quotient(source, others)
    return target


def _convert_flatten(lowering: Lowering, node: ir.Node) -> Any:
    value = required_input(node, 0)
    sizes = lowering.dimensions(value)
    axis = attribute(node, "axis", 1)
    axis = axis + len(sizes) if axis < 0 else axis
    product = lowering.sizes.product
    return lowering.reshape(lowering.tensor(value), [product(sizes[:axis]), product(sizes[axis:])])


def _convert_squeeze(lowering: Lowering, node: ir.Node) -> Any:
    value = required_input(node, 0)
    sizes = lowering.dimensions(value)
    axes = lowering.numbers(optional_input(node, 1), "the axes")
    if axes is None:
        if not all(isinstance(size, int) for size in sizes):
            raise UnsupportedError(f"Squeeze without axes on dynamic shape {sizes}; expected axes")
        axes = [axis for axis, size in enumerate(sizes) if size == 1]
    removed = {normalized_axis(axis, len(sizes)) for axis in axes}
    static = lowering.static(value)
    if static is not None:
        return StaticValue(static.elements.reshape([s for a, s in enumerate(sizes) if a not in removed]), static.dtype)
    tensor = lowering.tensor(value)
    if any(sizes[axis] != 1 for axis in removed):
        tensor = lowering.assume_shape(tensor, [1 if axis in removed else size for axis, size in enumerate(sizes)])
    return lowering.reshape(tensor, [size for axis, size in enumerate(sizes) if axis not in removed])


def _convert_unsqueeze(lowering: Lowering, node: ir.Node) -> Any:
    value = required_input(node, 0)
    axes = lowering.numbers(required_input(node, 1), "the axes") or []
    sizes = lowering.dimensions(value)
    rank = len(sizes) + len(axes)
    for axis in sorted(normalized_axis(axis, rank) for axis in axes):
        sizes.insert(axis, 1)
    static = lowering.static(value)
    if static is not None:
        return StaticValue(static.elements.reshape(sizes), static.dtype)
    return lowering.reshape(lowering.tensor(value), sizes)


def _convert_transpose(lowering: Lowering, node: ir.Node) -> Any:
    value = required_input(node, 0)
    rank = len(lowering.dimensions(value))
    order = [int(axis) for axis in attribute(node, "perm", tuple(reversed(range(rank))))]
    if sorted(order) != list(range(rank)):
        raise UnsupportedError(f"perm is {order}; expected each of {rank} axes once")
    static = lowering.static(value)
    if static is not None:
        return StaticValue(static.elements.transpose(order), static.dtype)

    tensor = lowering.tensor(value)
    before = transposed_from(lowering, tensor, order)
    if before is not None:
        return before

    def build(source: te.Tensor) -> te.Tensor:
        def element(*indices: tirx.Expr) -> tirx.Expr:
            return source(*(indices[order.index(axis)] for axis in range(rank)))

        return te.compute([source.shape[axis] for axis in order], element, name="transpose")

    return lowering.compute(build, [tensor], "transpose")


def _convert_expand(lowering: Lowering, node: ir.Node) -> Any:
    value = required_input(node, 0)
    source = lowering.dimensions(value)
    target = lowering.runtime_sizes(required_input(node, 1))
    shape = broadcast_shape(lowering.sizes, [source, target])
    static = lowering.static(value)
    if (
        static is not None
        and all(isinstance(size, int) for size in shape)
        and math.prod(shape) <= MAXIMUM_KNOWN_ELEMENTS
    ):
        return StaticValue(np.broadcast_to(static.elements, shape), static.dtype)
    needed = requirements_of(lowering, [target], shape)
    return lowering.checked(broadcast_to(lowering, lowering.tensor(value), shape), needed)


def _convert_constant(lowering: Lowering, node: ir.Node) -> Any:
    return None  # Read where it is used.


def _convert_constant_of_shape(lowering: Lowering, node: ir.Node) -> Any:
    sizes = lowering.runtime_sizes(required_input(node, 0))
    fill = attribute(node, "value")
    dtype = "float32" if fill is None else dtype_name(fill.dtype)
    number = 0.0 if fill is None else fill.numpy().reshape(-1)[0].item()
    static = all(isinstance(size, int) for size in sizes)
    if static and math.prod(sizes) <= MAXIMUM_KNOWN_ELEMENTS and isinstance(number, (int, bool)):
        return StaticValue.of(np.full(sizes, number), dtype)
    return full(lowering, sizes, number, dtype)


def full(lowering: Lowering, sizes: Sequence[Any], number: float, dtype: str) -> relax.Var:
    shape = [lowering.sizes.expression(size) for size in sizes]
    return lowering.compute(lambda: te.compute(shape, lambda *_: tirx.const(number, dtype), name="full"), [], "full")[0]


def _convert_tile(lowering: Lowering, node: ir.Node) -> Any:
    value = required_input(node, 0)
    repeats = lowering.runtime_sizes(required_input(node, 1))
    sizes = lowering.dimensions(value)
    shape = [
        lowering.sizes.expression(lowering.sizes.simplify(size * repeat))
        for size, repeat in zip(sizes, repeats, strict=True)
    ]

    def build(source: te.Tensor) -> te.Tensor:
        def element(*indices: tirx.Expr) -> tirx.Expr:
            pairs = zip(indices, source.shape, sizes, repeats, strict=True)
            whole = ((i, length, repeat == 1 or _is_number(size, 0)) for i, length, size, repeat in pairs)
            return source(*(i if same else tirx.floormod(i, length) for i, length, same in whole))

        return te.compute(shape, element, name="tile")

    return lowering.compute(build, [lowering.tensor(value)], "tile")


CONVERTERS: dict[str, Converter] = {
    "Shape": _convert_shape,
    "Size": _convert_size,
    "Reshape": _convert_reshape,
    "Flatten": _convert_flatten,
    "Squeeze": _convert_squeeze,
    "Unsqueeze": _convert_unsqueeze,
    "Transpose": _convert_transpose,
    "Expand": _convert_expand,
    "Constant": _convert_constant,
    "ConstantOfShape": _convert_constant_of_shape,
    "Tile": _convert_tile,
}
