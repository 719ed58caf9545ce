"""Operators that read or write at computed positions, and operators whose result's size depends on the data.

Indices come from the user or from the data. Negative ones count from the end. Ones out of range never touch memory
outside the tensor: reads are clamped, writes are skipped.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from tvm import relax, te, tirx

from moec.common.errors import UnsupportedError
from moec.ir.streaming import looks_up_rows
from moec.runtime.expert_calls import TABLE_ROWS
from moec.targets.tvm.kernels import serial_kernels
from moec.targets.tvm.kernels.comparisons import is_nonzero
from moec.targets.tvm.kernels.te_kernels import Requirement
from moec.targets.tvm.lowering.attributes import attribute, normalized_axis, optional_input, required_input
from moec.targets.tvm.lowering.broadcasting import emit_elementwise
from moec.targets.tvm.lowering.lowering import Converter, Lowering
from moec.targets.tvm.onnx.runtime_axes import rows_around
from moec.targets.tvm.sizes.symbolic import StaticValue


def _wrapped(index: tirx.Expr, size: Any) -> tirx.Expr:
    """The index counted from the front, as int64."""
    index = index.astype("int64")
    return tirx.Select(index < 0, index + size, index)


def safe_index(index: tirx.Expr, size: Any) -> tirx.Expr:
    """The index counted from the front and clamped into range."""
    return tirx.max(tirx.min(_wrapped(index, size), size - 1), tirx.IntImm("int64", 0))


def _where_any(lowering: Lowering, size: Any, element: tirx.Expr) -> tirx.Expr:
    """The element, or 0 where the axis has size 0: a clamped index is out of range there."""
    if lowering.sizes.less(0, size):
        return element
    return tirx.if_then_else(lowering.sizes.expression(size) > 0, element, tirx.const(0, element.ty.dtype))


def _equal_sizes(lowering: Lowering, name: str, actual: Sequence[Any], expected: Sequence[Any]) -> list[Requirement]:
    """Checks that an input, ``name``, has the expected size on each axis. Raises UnsupportedError for another rank."""
    if len(actual) != len(expected):
        raise UnsupportedError(f"{name} have rank {len(actual)}; expected {len(expected)}")
    return [
        requirement
        for axis, (size, expected_size) in enumerate(zip(actual, expected, strict=True))
        for requirement in lowering.require(
            lowering.sizes.same(size, expected_size), f"{name} have size {size} on axis {axis}", f"{expected_size}"
        )
    ]


def _within(lowering: Lowering, indices: Sequence[Any], data: Sequence[Any], axis: int) -> list[Requirement]:
    """Checks that on every axis except ``axis`` there are at most as many indices as elements of the data.

    Raises UnsupportedError where indices and data differ in rank."""
    if len(indices) != len(data):
        raise UnsupportedError(f"the indices have rank {len(indices)}; expected {len(data)}, as the data has")
    return [
        requirement
        for other, (count, size) in enumerate(zip(indices, data, strict=True))
        if other != axis and not lowering.sizes.equal(count, size)
        for requirement in lowering.require(
            lowering.sizes.expression(count) <= lowering.sizes.expression(size),
            f"there are {count} indices on axis {other}",
            f"at most {size}, as the data has",
        )
    ]


def _convert_gather(lowering: Lowering, node: ir.Node) -> Any:
    data, indices = required_input(node, 0), required_input(node, 1)
    sizes = lowering.dimensions(data)
    axis = normalized_axis(attribute(node, "axis", 0), len(sizes))
    static, positions = lowering.static(data), lowering.static(indices)
    if static is not None and positions is not None and positions.numbers is not None:
        places, size = positions.numbers.astype(np.int64), static.elements.shape[axis]
        if places.size and not (-size <= places.min() and places.max() < size):
            raise UnsupportedError(f"indices from {places.min()} to {places.max()} into an axis of size {size}")
        taken = static.elements.take(places, axis)
        return (
            StaticValue(taken, static.dtype) if isinstance(taken, np.ndarray) else StaticValue.of(taken, static.dtype)
        )
    rank = len(lowering.dimensions(indices))
    if positions is not None and positions.numbers is not None and rank == 0:
        return _gather_one(lowering, data, axis, int(positions.numbers))
    table = lowering.row_table(data) if lowering.streams and looks_up_rows(node) else None
    if table is not None:
        rows = relax.TensorType([*lowering.shape(indices), *lowering.shape(data)[1:]], str(table.ty.dtype))
        return lowering.call_runtime(TABLE_ROWS, [table, lowering.tensor(indices)], rows, "table_rows")

    def build(source: te.Tensor, index: te.Tensor) -> te.Tensor:
        shape = [*source.shape[:axis], *index.shape, *source.shape[axis + 1 :]]

        def element(*at: tirx.Expr) -> tirx.Expr:
            row = safe_index(index(*at[axis : axis + rank]), source.shape[axis])
            return _where_any(lowering, sizes[axis], source(*at[:axis], row, *at[axis + rank :]))

        return te.compute(shape, element, name="gather")

    return lowering.compute(build, [lowering.tensor(data), lowering.tensor(indices)], "gather")


def _gather_one(lowering: Lowering, data: ir.Value, axis: int, position: int) -> relax.Var:
    size = lowering.dimensions(data)[axis]
    if isinstance(size, int) and not -size <= position < size:
        raise UnsupportedError(f"index {position} is out of range for axis {axis} of size {size}")
    needed = []
    if not isinstance(size, int):
        least = position + 1 if position >= 0 else -position
        needed = lowering.require(size >= least, f"index {position} on axis {axis} of size {size}", "one in range")
    row = position if position >= 0 else size + position

    def build(source: te.Tensor) -> te.Tensor:
        shape = [*source.shape[:axis], *source.shape[axis + 1 :]]
        return te.compute(shape, lambda *at: source(*at[:axis], row, *at[axis:]), name="gather")

    return lowering.compute(build, [lowering.tensor(data)], "gather", needed)[0]


def _convert_gather_elements(lowering: Lowering, node: ir.Node) -> Any:
    data, indices = required_input(node, 0), required_input(node, 1)
    sizes = lowering.dimensions(data)
    axis = normalized_axis(attribute(node, "axis", 0), len(sizes))
    needed = _within(lowering, lowering.dimensions(indices), sizes, axis)

    def build(source: te.Tensor, index: te.Tensor) -> te.Tensor:
        def element(*at: tirx.Expr) -> tirx.Expr:
            chosen = source(*at[:axis], safe_index(index(*at), source.shape[axis]), *at[axis + 1 :])
            return _where_any(lowering, sizes[axis], chosen)

        return te.compute(index.shape, element, name="gather_elements")

    return lowering.compute(build, [lowering.tensor(data), lowering.tensor(indices)], "gather_elements", needed)


def _convert_gather_nd(lowering: Lowering, node: ir.Node) -> Any:
    data, indices = required_input(node, 0), required_input(node, 1)
    batch = attribute(node, "batch_dims", 0)
    *outer, depth = lowering.dimensions(indices)
    if not isinstance(depth, int):
        raise UnsupportedError("the last dim of GatherND's indices is dynamic; expected a fixed number")
    sizes = lowering.dimensions(data)
    needed = _equal_sizes(lowering, "the batches of the indices", outer[:batch], sizes[:batch])

    def build(source: te.Tensor, index: te.Tensor) -> te.Tensor:
        shape = [*index.shape[:-1], *source.shape[batch + depth :]]

        def element(*at: tirx.Expr) -> tirx.Expr:
            row, rest = at[: len(outer)], at[len(outer) :]
            picked = [safe_index(index(*row, number), source.shape[batch + number]) for number in range(depth)]
            chosen = source(*at[:batch], *picked, *rest)
            for size in sizes[batch : batch + depth]:
                chosen = _where_any(lowering, size, chosen)
            return chosen

        return te.compute(shape, element, name="gather_nd")

    return lowering.compute(build, [lowering.tensor(data), lowering.tensor(indices)], "gather_nd", needed)


def _call_serial(
    lowering: Lowering,
    kernel: tirx.PrimFunc,
    arguments: Sequence[relax.Expr],
    types: Sequence[tuple[Any, str]],
    name: str,
) -> list[relax.Var]:
    out_types = [relax.TensorType([lowering.sizes.expression(size) for size in shape], dtype) for shape, dtype in types]
    return lowering.call_serial(kernel, arguments, out_types, name)


def in_range(index: tirx.Expr, size: Any) -> tirx.Expr:
    return tirx.And(index >= 0, index < size)


Scatter = Callable[[Lowering, relax.Expr, relax.Expr, relax.Expr, str], relax.Var]
"""A target's scatter of updates [N, inner] into rows of data [P, inner].

Its arguments are ``(lowering, data, rows, updates, reduction)``. ``rows``, int64 [before, along, after] of N elements,
has the row that each update changes, in order; -1 for none. Two updates can change the same row only if their indices
differ in ``along`` alone."""


def _scatter_in_order(
    lowering: Lowering, data: relax.Expr, rows: relax.Expr, updates: relax.Expr, reduction: str
) -> relax.Var:
    """Scatter in one loop over the updates."""
    dtype = str(data.ty.dtype)
    flat = lowering.reshape(rows, [updates.ty.shape[0]])
    kernel = serial_kernels.scatter_rows(dtype, reduction)
    return _call_serial(lowering, kernel, [data, flat, updates], [(list(data.ty.shape), dtype)], "scatter")[0]


def _convert_scatter_nd(scatter: Scatter, lowering: Lowering, node: ir.Node) -> Any:
    data, indices, updates = (required_input(node, position) for position in range(3))
    sizes = lowering.dimensions(data)
    *outer, depth = lowering.dimensions(indices)
    if not isinstance(depth, int):
        raise UnsupportedError("the last dim of ScatterND's indices is dynamic; expected a fixed number")
    updated = [*outer, *sizes[depth:]]
    needed = _equal_sizes(lowering, "the updates", lowering.dimensions(updates), updated)
    count = lowering.sizes.product(outer)
    inner = lowering.sizes.product(sizes[depth:])
    index = lowering.reshape(lowering.tensor(indices), [count, depth])

    def rows(flat: te.Tensor) -> te.Tensor:
        def element(n: tirx.Expr) -> tirx.Expr:
            row: Any = tirx.IntImm("int64", 0)
            valid: Any = tirx.const(True, "bool")
            for axis in range(depth):
                position = _wrapped(flat(n, axis), sizes[axis])
                valid = tirx.And(valid, in_range(position, sizes[axis]))
                row = row * sizes[axis] + position
            return tirx.Select(valid, row, tirx.IntImm("int64", -1))

        return te.compute((flat.shape[0],), element, name="scatter_rows")

    (row_of,) = lowering.compute(rows, [index], "scatter_rows")
    old, new = lowering.tensor(data), lowering.tensor(updates)
    changed = lowering.reshape(lowering.checked(new, needed, [old]), [count, inner])
    flat = lowering.reshape(old, [lowering.sizes.product(sizes[:depth]), inner])
    along = lowering.reshape(row_of, [1, count, 1])
    result = scatter(lowering, flat, along, changed, attribute(node, "reduction", "none"))
    return lowering.reshape(result, sizes)


def _convert_scatter_elements(scatter: Scatter, lowering: Lowering, node: ir.Node) -> Any:
    data, indices, updates = (required_input(node, position) for position in range(3))
    sizes = lowering.dimensions(data)
    axis = normalized_axis(attribute(node, "axis", 0), len(sizes))
    where = lowering.dimensions(indices)
    needed = _within(lowering, where, sizes, axis)
    needed += _equal_sizes(lowering, "the updates", lowering.dimensions(updates), where)
    count = lowering.sizes.product(where)

    def rows(index: te.Tensor) -> te.Tensor:
        def element(*at: tirx.Expr) -> tirx.Expr:
            position = _wrapped(index(*at), sizes[axis])
            row: Any = tirx.IntImm("int64", 0)
            for number, size in enumerate(sizes):
                row = row * size + (position if number == axis else at[number])
            return tirx.Select(in_range(position, sizes[axis]), row, tirx.IntImm("int64", -1))

        return te.compute(index.shape, element, name="scatter_rows")

    (row_of,) = lowering.compute(rows, [lowering.tensor(indices)], "scatter_rows")
    product = lowering.sizes.product
    along = lowering.reshape(row_of, [product(where[:axis]), where[axis], product(where[axis + 1 :])])
    old, new = lowering.tensor(data), lowering.tensor(updates)
    changed = lowering.reshape(lowering.checked(new, needed, [old]), [count, 1])
    flat = lowering.reshape(old, [product(sizes), 1])
    result = scatter(lowering, flat, along, changed, attribute(node, "reduction", "none"))
    return lowering.reshape(result, sizes)


def scatter_converters(scatter: Scatter) -> dict[str, Converter]:
    """The converters of operators that write at computed positions."""
    return {
        "ScatterND": functools.partial(_convert_scatter_nd, scatter),
        "ScatterElements": functools.partial(_convert_scatter_elements, scatter),
    }


def _convert_cumulative(lowering: Lowering, node: ir.Node) -> Any:
    value = required_input(node, 0)
    sizes = lowering.dimensions(value)
    flat = rows_around(lowering, required_input(node, 1), sizes)
    dtype = lowering.dtype(value)
    exclusive, reverse = bool(attribute(node, "exclusive", 0)), bool(attribute(node, "reverse", 0))
    kernel = serial_kernels.cumulative(dtype, node.op_type == "CumProd", exclusive, reverse)
    source = lowering.reshape(lowering.tensor(value), flat)
    (result,) = _call_serial(lowering, kernel, [source], [(flat, dtype)], "cumulative")
    return lowering.reshape(result, sizes)


def _convert_top_k(lowering: Lowering, node: ir.Node) -> Any:
    value = required_input(node, 0)
    sizes = lowering.dimensions(value)
    axis = normalized_axis(attribute(node, "axis", -1), len(sizes))
    (k,) = lowering.runtime_sizes(required_input(node, 1))
    fits = not lowering.sizes.less(sizes[axis], k) if lowering.sizes.less(sizes[axis], k) is not None else None
    fits = lowering.sizes.expression(k) <= lowering.sizes.expression(sizes[axis]) if fits is None else fits
    needed = lowering.require(fits, f"k is {k} on axis {axis} of size {sizes[axis]}", "no more than there are")
    last = len(sizes) - 1
    order = [number for number in range(len(sizes)) if number != axis] + [axis]
    tensor = lowering.checked(lowering.tensor(value), needed)
    if axis != last:
        tensor = _permuted(lowering, tensor, order)
    outer = [sizes[number] for number in order[:-1]]
    rows = lowering.sizes.product(outer)
    dtype = lowering.dtype(value)
    kernel = serial_kernels.top_k(dtype, bool(attribute(node, "largest", 1)))
    source = lowering.reshape(tensor, [rows, sizes[axis]])
    results = _call_serial(lowering, kernel, [source], [([rows, k], dtype), ([rows, k], "int64")], "top_k")
    results = [lowering.reshape(result, [*outer, k]) for result in results]
    if axis != last:
        back = [order.index(number) for number in range(len(sizes))]
        results = [_permuted(lowering, result, back) for result in results]
    return results


def _permuted(lowering: Lowering, tensor: relax.Expr, order: list[int]) -> relax.Var:
    def build(source: te.Tensor) -> te.Tensor:
        def element(*at: tirx.Expr) -> tirx.Expr:
            return source(*(at[order.index(axis)] for axis in range(len(order))))

        return te.compute([source.shape[axis] for axis in order], element, name="transpose")

    return lowering.compute(build, [tensor], "transpose")[0]


def _convert_non_zero(lowering: Lowering, node: ir.Node) -> Any:
    value = required_input(node, 0)
    sizes = lowering.dimensions(value)
    total = lowering.sizes.product(sizes)
    mask = lowering.tensor(value)
    if lowering.dtype(value) != "bool":
        mask = emit_elementwise(lowering, [value], is_nonzero, "is_nonzero")
    mask = lowering.reshape(mask, [total])
    (count,) = _call_serial(lowering, serial_kernels.count_nonzero(), [mask], [([1], "int64")], "count_nonzero")
    nonzero = lowering.size_from(count, f"{node.outputs[0].name}_count")
    (flat,) = _call_serial(
        lowering, serial_kernels.positions_of_nonzero(), [mask], [([nonzero], "int64")], "positions_of_nonzero"
    )

    def unravel(position: te.Tensor) -> te.Tensor:
        def element(axis: tirx.Expr, m: tirx.Expr) -> tirx.Expr:
            chosen: Any = tirx.IntImm("int64", 0)
            remaining = position(m)
            for number in range(len(sizes) - 1, -1, -1):
                coordinate = tirx.floormod(remaining, sizes[number])
                chosen = tirx.if_then_else(axis == number, coordinate if number else remaining, chosen)
                remaining = tirx.floordiv(remaining, sizes[number])
            return chosen

        return te.compute((tirx.IntImm("int64", len(sizes)), position.shape[0]), element, name="unravel")

    return lowering.compute(unravel, [flat], "unravel")


def _convert_one_hot(lowering: Lowering, node: ir.Node) -> Any:
    indices, depth_value, values = (required_input(node, position) for position in range(3))
    (depth,) = lowering.runtime_sizes(depth_value)
    sizes = lowering.dimensions(indices)
    axis = normalized_axis(attribute(node, "axis", -1), len(sizes) + 1)
    shape = [lowering.sizes.expression(size) for size in (*sizes[:axis], depth, *sizes[axis:])]
    needed = _equal_sizes(lowering, "off and on value", lowering.dimensions(values), [2])

    def build(index: te.Tensor, off_on: te.Tensor) -> te.Tensor:
        def element(*at: tirx.Expr) -> tirx.Expr:
            place = _wrapped(index(*at[:axis], *at[axis + 1 :]), depth)
            return tirx.Select(place == at[axis], off_on(1), off_on(0))

        return te.compute(shape, element, name="one_hot")

    return lowering.compute(build, [lowering.tensor(indices), lowering.tensor(values)], "one_hot", needed)


def _convert_trilu(lowering: Lowering, node: ir.Node) -> Any:
    value = required_input(node, 0)
    upper = attribute(node, "upper", 1)
    offset_value = optional_input(node, 1)
    offset = 0 if offset_value is None else lowering.runtime_integers(offset_value)[0]

    def build(source: te.Tensor) -> te.Tensor:
        def element(*at: tirx.Expr) -> tirx.Expr:
            distance = at[-1] - at[-2]
            kept = distance >= offset if upper else distance <= offset
            return tirx.if_then_else(kept, source(*at), tirx.const(0, source.dtype))

        return te.compute(source.shape, element, name="trilu")

    return lowering.compute(build, [lowering.tensor(value)], "trilu")


CONVERTERS: dict[str, Converter] = {
    "Gather": _convert_gather,
    "GatherElements": _convert_gather_elements,
    "GatherND": _convert_gather_nd,
    **scatter_converters(_scatter_in_order),
    "CumProd": _convert_cumulative,
    "CumSum": _convert_cumulative,
    "TopK": _convert_top_k,
    "NonZero": _convert_non_zero,
    "OneHot": _convert_one_hot,
    "Trilu": _convert_trilu,
}
