"""Elements of constants."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import sympy

from moec.ir.masks.conditions import TRUE, IndexCondition, Place, negated, truth
from moec.ir.masks.elements import EitherNumber, Element

MOST_ENTRIES = 1 << 22
"""Larger constants are not looked at."""


def _numbers(value: ir.Value) -> np.ndarray | None:
    tensor = None if value.is_graph_input() else value.const_value
    if tensor is None or tensor.size > MOST_ENTRIES:
        return None
    data = tensor.numpy()
    return data.astype(np.float32) if tensor.dtype.is_floating_point() and tensor.dtype.itemsize < 4 else data


def constant_element(value: ir.Value, place: Place) -> Element | None:
    """The element of a constant: of a single number, at a known place, of equally spaced integers, or of a triangle."""
    data = _numbers(value)
    if data is None or data.size == 0 or data.dtype.kind not in "biuf" or len(place) != data.ndim:
        return None
    if data.size == 1:
        return plain(data.ravel()[0])
    if all(index.is_Integer for index in place):
        indices = tuple(map(int, place))
        inside = all(0 <= index < size for index, size in zip(indices, data.shape, strict=True))
        return plain(data[indices]) if inside else None
    return _spaced(data, place) if data.dtype.kind in "iu" else _band(data, place)


def plain(number: Any) -> Element:
    if number.dtype.kind == "b":
        return truth(number)
    return sympy.Integer(int(number)) if number.dtype.kind in "iu" else EitherNumber(TRUE, float(number), float(number))


def _spaced(data: np.ndarray, place: Place) -> sympy.Expr | None:
    """An element of integers whose differences along each axis are all equal."""
    first = int(data.ravel()[0])
    steps = [int(np.take(data, 1, axis).ravel()[0]) - first if data.shape[axis] > 1 else 0 for axis in range(data.ndim)]
    grids = np.indices(data.shape, sparse=True)
    expected = first + sum(step * grid for step, grid in zip(steps, grids, strict=True))
    if not np.array_equal(data, np.broadcast_to(expected, data.shape)):
        return None
    return first + sum((step * index for step, index in zip(steps, place, strict=True)), sympy.S.Zero)


def _band(data: np.ndarray, place: Place) -> Element | None:
    """An element of matrices that all hold one number up to a diagonal and another one behind it."""
    if data.ndim < 2:
        return None
    rows = data.reshape(-1, *data.shape[-2:])
    yes, no = rows[0, 0, 0], rows[0, 0, -1]
    last = int(np.argmax(rows[0, 0] != yes)) - 1
    behind = np.arange(data.shape[-1]) > np.arange(data.shape[-2])[:, None] + last
    if yes == no or not np.array_equal(rows, np.broadcast_to(np.where(behind, no, yes), rows.shape)):
        return None
    condition = IndexCondition("reach", place[-2] + last - place[-1])
    if data.dtype.kind == "b":
        return condition if yes else negated(condition)
    return EitherNumber(condition, float(yes), float(no))
