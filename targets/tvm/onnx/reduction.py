"""Reductions. 16-bit floats are summed and compared in float32; every sum runs in one fixed order."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir
from tvm import te, tirx

from moec.common.errors import UnsupportedError
from moec.targets.tvm.kernels.comparisons import is_nan, maximum, minimum, negated
from moec.targets.tvm.lowering.attributes import attribute, normalized_axis, optional_input, required_input
from moec.targets.tvm.lowering.lowering import Converter, Lowering
from moec.targets.tvm.onnx.runtime_axes import with_runtime_axes

Element = Callable[[tirx.Expr], tirx.Expr]


def _lowest(dtype: str) -> tirx.Expr:
    """Identity of a maximum: the least number of a type, negative infinity where it has one."""
    return tirx.const(-math.inf, dtype) if "float" in dtype else te.min_value(dtype)


def _highest(dtype: str) -> tirx.Expr:
    return tirx.const(math.inf, dtype) if "float" in dtype else te.max_value(dtype)


_product = te.comm_reducer(lambda a, b: a * b, lambda dtype: tirx.const(1, dtype), name="prod")
_maximum = te.comm_reducer(maximum, _lowest, name="max")
_minimum = te.comm_reducer(minimum, _highest, name="min")


REDUCERS: dict[str, tuple[Callable[..., tirx.Expr], Element]] = {
    "ReduceSum": (te.sum, lambda x: x),
    "ReduceMean": (te.sum, lambda x: x),
    "ReduceMax": (_maximum, lambda x: x),
    "ReduceMin": (_minimum, lambda x: x),
    "ReduceProd": (_product, lambda x: x),
    "ReduceL1": (te.sum, tirx.abs),
    "ReduceL2": (te.sum, lambda x: x * x),
    "ReduceSumSquare": (te.sum, lambda x: x * x),
    "ReduceLogSum": (te.sum, lambda x: x),
}


def _axes(lowering: Lowering, node: ir.Node, rank: int) -> list[int]:
    listed = lowering.numbers(optional_input(node, 1), "the axes")
    if listed is None and "axes" in node.attributes:
        listed = list(attribute(node, "axes"))
    if not listed:
        return [] if attribute(node, "noop_with_empty_axes", 0) else list(range(rank))
    return sorted({normalized_axis(axis, rank) for axis in listed})


def _accumulator(dtype: str) -> str:
    return {"float16": "float32", "bfloat16": "float32", "bool": "uint8"}.get(dtype, dtype)


def reduce_tensor(
    source: te.Tensor, axes: Sequence[int], combine: Callable[..., Any], element: Callable[..., tirx.Expr], dtype: str
) -> te.Tensor:
    """``combine`` over the axes of ``element(x, *place in the result)``, in ``dtype``, the reduced axes left out."""
    reduced = {axis: te.reduce_axis((0, source.shape[axis]), name=f"r{axis}") for axis in axes}
    kept = [size for axis, size in enumerate(source.shape) if axis not in reduced]

    def value(*indices: tirx.Expr) -> tirx.Expr:
        remaining = iter(indices)
        at = [reduced[axis] if axis in reduced else next(remaining) for axis in range(len(source.shape))]
        return combine(element(source(*at).astype(dtype), *indices), axis=list(reduced.values()))

    return te.compute(kept, value, name="reduce")


def _require_floats(name: str, dtype: str) -> None:
    """Roots and logarithms of integers: ONNX lets them be asked for and does not say how they are rounded."""
    if "float" not in dtype:
        raise UnsupportedError(f"{name} of {dtype}; expected floats: cast them first")


def _finish(lowering: Lowering, name: str, counted: Sequence[Any]) -> Element:
    if name == "ReduceMean":
        return _divided_by(lowering.sizes.expression(lowering.sizes.product(counted)))
    return {"ReduceL2": tirx.sqrt, "ReduceLogSum": tirx.log}.get(name, lambda x: x)


def _divided_by(count: tirx.Expr) -> Element:
    """The mean of so many from their sum; of no floats it is NaN, of no integers 0."""

    def mean(x: tirx.Expr) -> tirx.Expr:
        dtype = str(x.ty.dtype)
        if "float" not in dtype:
            return tirx.truncdiv(x, tirx.max(count, tirx.const(1, "int64")).astype(dtype))
        return tirx.const(math.nan, dtype) if isinstance(count, tirx.IntImm) and count == 0 else x / count.astype(dtype)

    return mean


def _with_kept_axes(lowering: Lowering, node: ir.Node, result: Any, sizes: Sequence[Any], axes: Sequence[int]) -> Any:
    if not attribute(node, "keepdims", 1):
        return result
    return lowering.reshape(result, [1 if axis in axes else size for axis, size in enumerate(sizes)])


def _reduction(name: str) -> Converter:
    combine, element = REDUCERS[name]

    def convert(lowering: Lowering, node: ir.Node) -> Any:
        value = required_input(node, 0)
        sizes = lowering.dimensions(value)
        axes = _axes(lowering, node, len(sizes))
        finish = _finish(lowering, name, [sizes[axis] for axis in axes])
        dtype = lowering.dtype(value)
        if name in ("ReduceL2", "ReduceLogSum"):
            _require_floats(name, dtype)

        def build(source: te.Tensor) -> te.Tensor:
            wide = _accumulator(dtype)
            if not axes:  # every element is all there is
                return te.compute(source.shape, lambda *at: finish(element(source(*at).astype(wide))).astype(dtype))
            total = reduce_tensor(source, axes, combine, lambda x, *_: element(x), wide)
            return te.compute(total.shape, lambda *at: finish(total(*at)).astype(dtype), name=name.lower())

        (result,) = lowering.compute(build, [lowering.tensor(value)], name.lower())
        return _with_kept_axes(lowering, node, result, sizes, axes)

    return convert


def _convert_log_sum_exp(lowering: Lowering, node: ir.Node) -> Any:
    value = required_input(node, 0)
    sizes = lowering.dimensions(value)
    axes = _axes(lowering, node, len(sizes))
    dtype = lowering.dtype(value)
    _require_floats("ReduceLogSumExp", dtype)
    if not axes:
        return lowering.tensor(value)
    wide = _accumulator(dtype)

    def build(source: te.Tensor) -> te.Tensor:
        largest = reduce_tensor(source, axes, _maximum, lambda x, *_: x, wide)

        def shift(*at: tirx.Expr) -> tirx.Expr:
            """The largest number of a row, as long as numbers can be taken relative to it."""
            top = largest(*at)
            return tirx.Select(tirx.abs(top) < _highest(wide), top, tirx.const(0, wide))

        total = reduce_tensor(source, axes, te.sum, lambda x, *at: tirx.exp(x - shift(*at)), wide)
        return te.compute(total.shape, lambda *at: (tirx.log(total(*at)) + shift(*at)).astype(dtype), name="sum")

    (result,) = lowering.compute(build, [lowering.tensor(value)], "log_sum_exp")
    return _with_kept_axes(lowering, node, result, sizes, axes)


def _arg_extreme(largest: bool) -> Converter:
    def convert(lowering: Lowering, node: ir.Node) -> Any:
        value = required_input(node, 0)
        sizes = lowering.dimensions(value)
        axis = normalized_axis(attribute(node, "axis", 0), len(sizes))
        last = bool(attribute(node, "select_last_index", 0))
        wide = _accumulator(lowering.dtype(value))

        def better(left: tuple, right: tuple) -> tirx.Expr:
            strictly = left[1] > right[1] if largest else left[1] < right[1]
            equal = tirx.EQ(left[1], right[1])
            if "float" in wide:  # as in numpy, nothing is above a NaN
                strictly = tirx.any(strictly, tirx.all(is_nan(left[1]), negated(is_nan(right[1]))))
                equal = tirx.any(equal, tirx.all(is_nan(left[1]), is_nan(right[1])))
            earlier = left[0] > right[0] if last else left[0] < right[0]
            return tirx.any(strictly, tirx.all(equal, earlier))

        def combine(left: tuple, right: tuple) -> tuple:
            chosen = better(left, right)
            return tirx.Select(chosen, left[0], right[0]), tirx.Select(chosen, left[1], right[1])

        def identity(index_dtype: str, value_dtype: str) -> tuple:
            worst = _lowest(value_dtype) if largest else _highest(value_dtype)
            return tirx.const(-1 if last else (1 << 62), index_dtype), worst

        reducer = te.comm_reducer(combine, identity, name="argmax" if largest else "argmin")

        def build(source: te.Tensor) -> te.Tensor:
            along = te.reduce_axis((0, source.shape[axis]), name="along")
            kept = [size for number, size in enumerate(source.shape) if number != axis]

            def element(*at: tirx.Expr) -> Any:
                candidate = source(*at[:axis], along, *at[axis:]).astype(wide)
                return reducer((along.var.astype("int64"), candidate), axis=[along])

            return te.compute(kept, lambda *at: element(*at), name="arg")

        return _arg_result(lowering, node, build, value, axis)

    return convert


def _arg_result(lowering: Lowering, node: ir.Node, build: Any, value: ir.Value, axis: int) -> Any:
    index, _ = lowering.compute(build, [lowering.tensor(value)], node.op_type.lower())
    return _with_kept_axes(lowering, node, index, lowering.dimensions(value), [axis])


CONVERTERS: dict[str, Converter] = {
    **{name: with_runtime_axes(_reduction(name)) for name in REDUCERS},
    "ReduceLogSumExp": with_runtime_axes(_convert_log_sum_exp),
    "ArgMax": _arg_extreme(largest=True),
    "ArgMin": _arg_extreme(largest=False),
}
