"""Reductions. 16-bit floats are summed and compared in float32; every sum runs in one fixed order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir
from tvm import te, tirx

from moec.targets.tvm.attributes import attribute, normalized_axis, optional_input, required_input
from moec.targets.tvm.lowering import Converter, Lowering

Element = Callable[[tirx.Expr], tirx.Expr]


def _product(element: tirx.Expr, axis: list[tirx.IterVar]) -> tirx.Expr:
    multiply = te.comm_reducer(lambda a, b: a * b, lambda dtype: tirx.const(1, dtype), name="prod")
    return multiply(element, axis=axis)


REDUCERS: dict[str, tuple[Callable[..., tirx.Expr], Element]] = {
    "ReduceSum": (te.sum, lambda x: x),
    "ReduceMean": (te.sum, lambda x: x),
    "ReduceMax": (te.max, lambda x: x),
    "ReduceMin": (te.min, lambda x: x),
    "ReduceProd": (_product, lambda x: x),
    "ReduceL1": (te.sum, tirx.abs),
    "ReduceL2": (te.sum, lambda x: x * x),
    "ReduceSumSquare": (te.sum, lambda x: x * x),
    "ReduceLogSum": (te.sum, lambda x: x),
}


def _axes(lowering: Lowering, node: ir.Node, rank: int) -> list[int]:
    given = lowering.numbers(optional_input(node, 1), "the axes")
    if given is None and "axes" in node.attributes:
        given = list(attribute(node, "axes"))
    if not given:
        return [] if attribute(node, "noop_with_empty_axes", 0) else list(range(rank))
    return sorted({normalized_axis(axis, rank) for axis in given})


def _accumulator(dtype: str) -> str:
    return "float32" if dtype in ("float16", "bfloat16") else dtype


def reduce_tensor(
    source: te.Tensor, axes: Sequence[int], combine: Callable[..., tirx.Expr], element: Element, dtype: str
) -> te.Tensor:
    """``combine`` over the axes of ``element(x)``, in ``dtype``, the reduced axes left out."""
    reduced = {axis: te.reduce_axis((0, source.shape[axis]), name=f"r{axis}") for axis in axes}
    kept = [size for axis, size in enumerate(source.shape) if axis not in reduced]

    def value(*indices: tirx.Expr) -> tirx.Expr:
        remaining = iter(indices)
        at = [reduced[axis] if axis in reduced else next(remaining) for axis in range(len(source.shape))]
        return combine(element(source(*at).astype(dtype)), axis=list(reduced.values()))

    return te.compute(kept, value, name="reduce")


def _finish(lowering: Lowering, name: str, counted: Sequence[Any]) -> Element:
    if name == "ReduceMean":
        count = lowering.sizes.expression(lowering.sizes.product(counted))
        return lambda x: (
            x / count.astype(x.ty.dtype) if "float" in str(x.ty.dtype) else tirx.truncdiv(x, count.astype(x.ty.dtype))
        )
    return {"ReduceL2": tirx.sqrt, "ReduceLogSum": tirx.log}.get(name, lambda x: x)


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
        if not axes:
            return lowering.tensor(value)
        finish = _finish(lowering, name, [sizes[axis] for axis in axes])
        dtype = lowering.dtype(value)

        def build(source: te.Tensor) -> te.Tensor:
            total = reduce_tensor(source, axes, combine, element, _accumulator(dtype))
            return te.compute(total.shape, lambda *at: finish(total(*at)).astype(dtype), name=name.lower())

        (result,) = lowering.compute(build, [lowering.tensor(value)], name.lower())
        return _with_kept_axes(lowering, node, result, sizes, axes)

    return convert


def _convert_log_sum_exp(lowering: Lowering, node: ir.Node) -> Any:
    value = required_input(node, 0)
    sizes = lowering.dimensions(value)
    axes = _axes(lowering, node, len(sizes))
    dtype = lowering.dtype(value)
    wide = _accumulator(dtype)

    def build(source: te.Tensor) -> te.Tensor:
        largest = reduce_tensor(source, axes, te.max, lambda x: x, wide)
        kept = [axis for axis in range(len(sizes)) if axis not in axes]
        shifted = te.compute(
            source.shape,
            lambda *at: tirx.exp(source(*at).astype(wide) - largest(*(at[axis] for axis in kept))),
            name="shifted",
        )
        total = reduce_tensor(shifted, axes, te.sum, lambda x: x, wide)
        return te.compute(
            total.shape, lambda *at: (tirx.log(total(*at)) + largest(*at)).astype(dtype), name="log_sum_exp"
        )

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
            earlier = left[0] > right[0] if last else left[0] < right[0]
            return tirx.Or(strictly, tirx.And(tirx.EQ(left[1], right[1]), earlier))

        def combine(left: tuple, right: tuple) -> tuple:
            chosen = better(left, right)
            return tirx.Select(chosen, left[0], right[0]), tirx.Select(chosen, left[1], right[1])

        def identity(index_dtype: str, value_dtype: str) -> tuple:
            worst = te.min_value(value_dtype) if largest else te.max_value(value_dtype)
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
    **{name: _reduction(name) for name in REDUCERS},
    "ReduceLogSumExp": _convert_log_sum_exp,
    "ArgMax": _arg_extreme(largest=True),
    "ArgMin": _arg_extreme(largest=False),
}
