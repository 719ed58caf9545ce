"""Range. The count of its numbers is known at compile time, follows from sizes, or is read at run time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from tvm import relax, te, tirx

from moec.common.errors import UnsupportedError
from moec.targets.tvm.kernels.te_kernels import Requirement
from moec.targets.tvm.lowering.attributes import required_input
from moec.targets.tvm.lowering.lowering import Converter, Lowering
from moec.targets.tvm.sizes.symbolic import MAXIMUM_KNOWN_ELEMENTS, MAXIMUM_SIZE, StaticValue

_INT64_MAXIMUM = (1 << 63) - 1


def _convert_range(lowering: Lowering, node: ir.Node) -> Any:
    values = [required_input(node, position) for position in range(3)]
    dtype = lowering.dtype(values[0])
    if "float" in dtype and all(lowering.is_constant(value) for value in values):
        return _range_of_floats(lowering, values, dtype)
    bounds = [static for value in values if (static := lowering.static(value)) is not None]
    if len(bounds) < len(values):
        return _range_at_run_time(lowering, values, dtype)
    start, limit, step = (bound.elements.flat[0] for bound in bounds)
    if isinstance(step, int) and step != 0:
        span = lowering.sizes.simplify(limit - start if step > 0 else start - limit)
        magnitude = abs(step)
        count = span if magnitude == 1 else span + (magnitude - 1)
        if magnitude != 1:
            count = (
                count // magnitude if isinstance(count, int) else tirx.floordiv(count, tirx.IntImm("int64", magnitude))
            )
        count = lowering.sizes.at_least(lowering.sizes.simplify(count), 0)
    else:
        raise UnsupportedError(f"the step of Range is {step}; expected a constant other than 0")
    if isinstance(count, int) and count > MAXIMUM_SIZE:
        raise UnsupportedError(f"Range makes {count} numbers; expected at most {MAXIMUM_SIZE}")
    if all(isinstance(number, int) for number in (start, count)) and count <= MAXIMUM_KNOWN_ELEMENTS:
        return StaticValue.of([start + step * i for i in range(count)], dtype)
    size = lowering.sizes.expression(count)
    return lowering.compute(
        lambda: te.compute((size,), lambda i: (start + i * step).astype(dtype), name="range"), [], "range"
    )


def _range_of_floats(lowering: Lowering, values: Sequence[ir.Value], dtype: str) -> Any:
    bounds = [lowering.constant(value) for value in values]
    start, limit, step = (float(np.asarray(bound).reshape(())) for bound in bounds)
    numbers = (start + step * np.arange(max(math.ceil((limit - start) / step), 0))).astype(dtype)
    return relax.const(numbers, dtype)


def _range_at_run_time(lowering: Lowering, values: Sequence[ir.Value], dtype: str) -> relax.Var:
    """Range whose bounds are tensors: kernels read the bounds, and the program reads only the count of numbers."""
    tensors = [lowering.tensor(value) for value in values]

    def at(bound: te.Tensor) -> tirx.Expr:
        return bound(*[0] * len(bound.shape))

    def count(*bounds: te.Tensor) -> te.Tensor:
        start, limit, step = map(at, bounds)
        number = (_count_of_floats if "float" in dtype else _count_of_integers)(start, limit, step)
        return te.compute((1,), lambda _: number, name="count")

    def numbers(*bounds: te.Tensor) -> te.Tensor:
        start, _, step = map(at, bounds)
        return te.compute((size,), lambda i: start + i.astype(dtype) * step, name="range")

    scalars = [lowering.checked(tensor, _is_scalar(lowering, tensor)) for tensor in tensors]
    size = lowering.size_from(lowering.compute(count, scalars, "range_count")[0], f"{values[1].name}_count")
    return lowering.compute(numbers, scalars, "range")[0]


def _is_scalar(lowering: Lowering, tensor: relax.Expr) -> list[Requirement]:
    """Check that the tensor has one element."""
    sizes = [lowering.sizes.simplify(size) for size in tensor.ty.shape]
    is_single = lowering.sizes.same(lowering.sizes.product(sizes), 1)
    return lowering.require(is_single, f"a scalar has sizes {sizes}", "one element")


def _count_of_integers(start: tirx.Expr, limit: tirx.Expr, step: tirx.Expr) -> tirx.Expr:
    """Count of the numbers of a Range; 0 for a step of 0. Differences are unsigned, so that none overflows."""

    def unsigned(number: tirx.Expr) -> tirx.Expr:
        return number.astype("int64").astype("uint64")

    unit, up, down = tirx.const(1, "uint64"), step > 0, step < 0
    distance = tirx.Select(up, unsigned(limit) - unsigned(start), unsigned(start) - unsigned(limit))
    magnitude = tirx.Select(
        up, step.astype("int64"), -tirx.max(step.astype("int64"), tirx.const(-_INT64_MAXIMUM, "int64"))
    )
    length = tirx.max(unsigned(magnitude), unit)
    count = tirx.min(tirx.div(distance - unit, length), tirx.const(MAXIMUM_SIZE, "uint64")).astype("int64") + 1
    any_ = tirx.any(tirx.all(up, start < limit), tirx.all(down, start > limit))
    return tirx.Select(any_, count, tirx.IntImm("int64", 0))


def _count_of_floats(start: tirx.Expr, limit: tirx.Expr, step: tirx.Expr) -> tirx.Expr:
    count = tirx.ceil((limit - start).astype("float64") / step.astype("float64"))
    most = tirx.const(float(MAXIMUM_SIZE), "float64")
    bounded = tirx.Select(
        count > tirx.const(0.0, "float64"), tirx.Select(count < most, count, most), tirx.const(0.0, "float64")
    )
    return bounded.astype("int64")


CONVERTERS: dict[str, Converter] = {"Range": _convert_range}
