"""The sources of a value's elements in another value, found by running the nodes in between on images of indices."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.common.errors import UnsupportedError
from moec.targets.hls.graph.affine import random_inputs
from moec.targets.hls.graph.calibrate import evaluate

Array = np.ndarray[Any, Any]

_DIGIT = 6
"""Bits of an index per image: few enough that a number of any type holds them, even after additions on the way."""


@dataclasses.dataclass(frozen=True)
class Moved:
    """The sources of a value's elements: element i is element ``places[i]`` of the source times ``scales[i]`` plus
    ``offsets[i]``. An element without a source has the place -1 and the scale 0. All arrays have the shape of the value
    for one image."""

    places: Array
    scales: Array
    offsets: Array


def moved(model: ir.Model, source: ir.Value, shape: tuple[int, ...], result: ir.Value) -> Moved:
    """The sources of the elements of ``result`` in ``source`` [B, *shape]. ``result`` is [B, ...], or [B ..., ...] with
    the rows of all images one after the other.

    Raises UnsupportedError where elements of the result are computed in another way.
    """
    size = int(np.prod(shape))
    digits = max(1, -(-size.bit_length() // _DIGIT))
    index = np.arange(size)
    digits_of_index = [
        index * 0,
        index * 0 + 1,
        *(index >> _DIGIT * place & (1 << _DIGIT) - 1 for place in range(digits)),
    ]
    images = np.stack(digits_of_index).reshape(-1, *shape).astype((source.dtype or ir.DataType.FLOAT).numpy())
    zeros, ones, *results = by_image(model, source, images, result)
    scales = ones - zeros
    taken = np.abs(scales) > 1e-6 * np.abs(scales).max(initial=0.0)
    places = np.full(scales.shape, 0, np.int64)
    for place, values in enumerate(results):
        digit = np.where(taken, (values - zeros) / np.where(taken, scales, 1), 0)
        if np.abs(digit - np.round(digit)).max(initial=0.0) > 0.05 or np.abs(values - zeros)[~taken].max(initial=0.0):
            raise UnsupportedError(
                f"elements of {result.name!r} are not elements of {source.name!r}, each times a number"
            )
        places += np.round(digit).astype(np.int64) << _DIGIT * place
    if places.min(initial=0) < 0 or places.max(initial=0) >= size:
        raise UnsupportedError(f"elements of {result.name!r} are not elements of {source.name!r}")
    return Moved(np.where(taken, places, -1), np.where(taken, scales, 0.0), zeros)


def by_image(model: ir.Model, source: ir.Value, images: Array, result: ir.Value) -> Array:
    """The result for each image [N, ...] at the source, float64 [N, ...], in as many calls as the graph's batch
    requires. Values with the rows of all images one after the other, [N rows, ...], are [N, rows, ...] here."""
    batch, in_rows = len(images), 1
    if source.shape is not None:
        in_rows = images.shape[1] if len(source.shape) == images.ndim - 1 else 1
        if isinstance(first := source.shape[0], int):
            batch = max(1, first // in_rows)
    padded = np.concatenate([images, np.repeat(images[:1], -len(images) % batch, axis=0)])
    parts = []
    for start in range(0, len(padded), batch):
        fed = padded[start : start + batch]
        part = evaluated(model, {source: fed.reshape(-1, *fed.shape[2:]) if in_rows > 1 else fed}, result, batch)
        parts.append(part.reshape(batch, -1, *part.shape[1:]) if len(part) != batch else part)
    return np.concatenate(parts)[: len(images)].astype(np.float64)


def evaluated(model: ir.Model, feeds: Mapping[ir.Value, Array], result: ir.Value, batch: int) -> Array:
    """The array of ``result``. Raises UnsupportedError where it depends on more than the feeds and shapes."""
    try:
        (array,) = evaluate(model, {**random_inputs(model, batch), **feeds}, [result])
    except ValueError as error:
        names = ", ".join(repr(value.name) for value in feeds)
        raise UnsupportedError(f"{result.name!r} is not computed from {names} alone: {error}") from error
    return array
