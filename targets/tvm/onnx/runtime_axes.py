"""Operators over axes that are known only at run time, rewritten to operators over known axes."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import onnx_ir as ir
from tvm import te, tirx

from moec.common.errors import UnsupportedError
from moec.targets.tvm.kernels.te_kernels import Requirement
from moec.targets.tvm.lowering.attributes import attribute, optional_input, required_input
from moec.targets.tvm.lowering.lowering import Converter, Lowering


def with_runtime_axes(convert: Converter) -> Converter:
    """Converter of a reduction whose axes (input 1) may be computed at run time.

    ``x`` [n...] is copied to a tensor [k..., r...] with two axes for each of x. For an axis that is reduced, k is 1 and
    r is n; for one that is kept, k is n and r is 1. The index in ``x`` is the sum of both indices, one of which is
    always 0. Then the last half of the axes is reduced. A fixed number of axes is checked to be in range and distinct;
    in a list of dynamic length, axes out of range reduce nothing.
    """

    @functools.wraps(convert)
    def converted(lowering: Lowering, node: ir.Node) -> Any:
        axes = optional_input(node, 1)
        if axes is None or lowering.static(axes) is not None:
            return convert(lowering, node)
        if len(lowering.dimensions(axes)) != 1:
            raise UnsupportedError(
                f"the axes in {axes.name!r} have the shape {lowering.dimensions(axes)}; expected a list"
            )
        (count,) = lowering.dimensions(axes)
        if count == 0:
            attributes = {name: attribute.value for name, attribute in node.attributes.items()}
            return lowering.convert_as(node.op_type, [required_input(node, 0)], attributes)
        value = required_input(node, 0)
        sizes = lowering.dimensions(value)
        rank = len(sizes)
        unit = tirx.IntImm("int64", 1)
        whole = [lowering.sizes.expression(size) for size in sizes]

        def halves(chosen: Any) -> list[Any]:
            kept = [tirx.if_then_else(chosen(axis), unit, size) for axis, size in enumerate(whole)]
            return kept + [tirx.if_then_else(chosen(axis), size, unit) for axis, size in enumerate(whole)]

        split = _sizes_by(lowering, axes, halves, rank, "split")

        def build(source: te.Tensor) -> te.Tensor:
            return te.compute(split, lambda *at: source(*(at[a] + at[rank + a] for a in range(rank))), name="split")

        needed = _distinct(lowering, axes, rank) if isinstance(count, int) else []
        (apart,) = lowering.compute(build, [lowering.tensor(value)], "split_axes", needed)
        last = ir.Value(name="axes", const_value=ir.tensor(np.arange(rank, 2 * rank)))
        (result,) = lowering.convert_as(node.op_type, [lowering.value_of(apart), last], {"keepdims": 0})
        if attribute(node, "keepdims", 1):
            return result
        if not isinstance(count, int):
            raise UnsupportedError(f"the number of axes in {axes.name!r} is dynamic; expected keepdims = 1")
        return lowering.reshape(result, _kept_sizes(lowering, axes, sizes, count))

    return converted


def _distinct(lowering: Lowering, axes: ir.Value, rank: int) -> list[Requirement]:
    integers = lowering.runtime_integers(axes)
    expected = f"different ones from {-rank} to {rank - 1}"
    needed: list[Requirement] = []
    for place, axis in enumerate(integers):
        needed += lowering.require(tirx.all(axis >= -rank, axis < rank), f"axis {axis}", expected)
        for other in integers[:place]:
            differs = tirx.all(*(axis - other != tirx.IntImm("int64", far) for far in (-rank, 0, rank)))
            needed += lowering.require(differs, f"axes {other} and {axis}", expected)
    return needed


def _sizes_by(lowering: Lowering, axes: ir.Value, make: Any, rank: int, name: str) -> list[Any]:
    """Sizes that depend on which axes are chosen: ``make(chosen)`` gives them, with ``chosen(axis)`` a condition."""

    def build(axes: te.Tensor) -> te.Tensor:
        flags = te.compute(
            (rank,),
            lambda axis: te.max(
                tirx.if_then_else(
                    _is_axis(axes(along.var), axis, rank), tirx.IntImm("int64", 1), tirx.IntImm("int64", 0)
                ),
                axis=[along],
            ),
            name="flags",
        )
        expressions = make(lambda axis: flags(axis) > 0)

        def element(position: tirx.Expr) -> tirx.Expr:
            result = lowering.sizes.expression(expressions[-1])
            for number in range(len(expressions) - 2, -1, -1):
                result = tirx.if_then_else(position == number, lowering.sizes.expression(expressions[number]), result)
            return result

        return te.compute((len(expressions),), element, name=name)

    along = te.reduce_axis((0, lowering.shape(axes)[0]), name="along")
    (vector,) = lowering.compute(build, [lowering.tensor(axes)], name)
    return lowering.runtime_sizes(lowering.value_of(vector))


def _is_axis(axis_number: tirx.Expr, axis: tirx.Expr, rank: int) -> tirx.Expr:
    wide = axis_number.astype("int64")
    return tirx.Or(wide == axis, wide + rank == axis)


def _kept_sizes(lowering: Lowering, axes: ir.Value, sizes: list[Any], count: int) -> list[Any]:
    """The sizes of the axes that are not chosen, in order."""
    rank = len(sizes)
    if rank == count:
        return []

    def make(chosen: Any) -> list[Any]:
        kept = []
        for place in range(rank - count):
            size: Any = tirx.IntImm("int64", 1)
            for axis in range(rank - 1, -1, -1):
                before: Any = tirx.IntImm("int64", 0)
                for other in range(axis):
                    before = before + tirx.Not(chosen(other)).astype("int64")
                here = tirx.And(tirx.Not(chosen(axis)), before == place)
                size = tirx.if_then_else(here, lowering.sizes.expression(sizes[axis]), size)
            kept.append(size)
        return kept

    return _sizes_by(lowering, axes, make, rank, "kept")


def rows_around(lowering: Lowering, axis: ir.Value, sizes: list[Any]) -> list[Any]:
    """``[product before, size, product after]`` of an axis, which may be computed at run time."""
    numbers = lowering.numbers(axis, "the axis") if lowering.static(axis) is not None else None
    product = lowering.sizes.product
    if numbers is not None:
        place = numbers[0] % max(len(sizes), 1)
        return [product(sizes[:place]), sizes[place], product(sizes[place + 1 :])]

    def build(axis_tensor: te.Tensor) -> te.Tensor:
        number = axis_tensor(*([0] * len(axis_tensor.shape))).astype("int64")
        rank = len(sizes)
        place = tirx.max(tirx.min(tirx.if_then_else(number < 0, number + rank, number), rank - 1), 0)

        def element(which: tirx.Expr) -> tirx.Expr:
            result: Any = tirx.IntImm("int64", 1)
            for at in range(rank):
                around = [product(sizes[:at]), sizes[at], product(sizes[at + 1 :])]
                for part, size in enumerate(around):
                    condition = tirx.And(place == at, which == part)
                    result = tirx.if_then_else(condition, lowering.sizes.expression(size), result)
            return result

        return te.compute((3,), element, name="around")

    (vector,) = lowering.compute(build, [lowering.tensor(axis)], "around")
    return lowering.runtime_sizes(lowering.value_of(vector))
