"""A part of a graph as one matrix and bias per token, found by running it, whatever its nodes are.

Unit vectors give the matrix. Random vectors at various positions must agree with it; a part that is not the same
product for every token is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.common.errors import UnsupportedError
from moec.ir.interpreter import EvaluationError
from moec.targets.hls.graph.calibrate import evaluate

Array = np.ndarray[Any, Any]

MOST_ELEMENTS = 1 << 24
"""The most numbers of an input, enough for an image of 2000 x 2000 pixels of 3 channels."""
_PROBES = 16
"""Random vectors next to the unit vectors."""
_TOLERANCE = 1e-4
"""The tolerated error of a matrix's results, as a part of the largest one."""


def affine_maps(
    model: ir.Model, source: ir.Value, results: Sequence[ir.Value], width: int, *, heads: int = 0, tokens: int = 1
) -> list[tuple[Array, Array]]:
    """The weights [out, width] and bias [out] with which each result is an affine function of a token of the source.

    The source is [B, T, width], or [B, H, T, width / H] with ``heads``, or rows [B T, width] that are whole images of
    ``tokens`` each.

    Raises UnsupportedError where a result is no such function of the source alone.
    """
    random = np.random.default_rng(0)
    probes = np.concatenate([np.zeros((1, width)), np.eye(width), random.normal(size=(_PROBES, width))]).astype(
        np.float32
    )
    parts = []
    for batch, images in _batches(source, probes, heads, tokens):
        feeds = {**random_inputs(model, images, _tokens(batch)), source: batch}
        try:
            parts.append([_by_token(result, batch.shape) for result in evaluate(model, feeds, results)])
        except (ValueError, EvaluationError) as error:
            raise UnsupportedError(
                f"{results[0].name!r} is not computed from {source.name!r} alone: {error}"
            ) from error
    maps = []
    for part in zip(*parts, strict=True):
        rows = np.concatenate(part)
        expected = rows[width + 1 : len(probes)]
        with np.errstate(invalid="ignore"):  # infinities are no product
            bias, weights = rows[0], (rows[1 : width + 1] - rows[0]).T
            error = np.abs(probes[width + 1 :] @ weights.T + bias - expected).max(initial=0.0)
        if not error <= _TOLERANCE * np.abs(expected).max(initial=0.0):
            raise UnsupportedError(f"{results[0].name!r} is more than a product per token of {source.name!r}")
        maps.append((weights, bias))
    return maps


def random_inputs(model: ir.Model, images: int, tokens: int | None = None) -> dict[ir.Value, Array]:
    """Random arrays for the model's inputs, ``images`` of them along the batch, for nodes that need an input's shape.
    A result that depends on the numbers themselves shows it, since they differ from token to token.

    Inputs get an array if all sizes except the first are known, and no larger than an image's. With ``tokens``, inputs
    of text get one too: sequences of that many tokens, and empty caches.
    """
    random = np.random.default_rng(1)
    arrays = {}
    for value in model.graph.inputs:
        sizes = sizes_behind_first(value)
        if sizes is None and tokens is not None:
            sizes = _sizes_of_text(value, tokens)
        if value.dtype is None or value.shape is None or sizes is None or math.prod(sizes) > MOST_ELEMENTS:
            continue
        first = value.shape[0]
        shape = (first if isinstance(first, int) else images, *sizes)
        arrays[value] = random.integers(0, 2, shape, np.uint8).astype(value.dtype.numpy())
    return arrays


def sizes_behind_first(value: ir.Value) -> tuple[int, ...] | None:
    """A value's sizes after the first, which is the batch's; None where one is unknown, or the value is a scalar."""
    if value.shape is None or not len(value.shape):
        return None
    sizes = tuple(size for size in list(value.shape)[1:] if isinstance(size, int))
    return sizes if len(sizes) == len(value.shape) - 1 else None


def _sizes_of_text(value: ir.Value, tokens: int) -> tuple[int, ...] | None:
    """The sizes after the batch of ids [B, T], of tokens [B, T, d], or of an empty cache [B, H, P, h], P = 0; None for
    another value."""
    shape = [] if value.shape is None else list(value.shape)
    if len(shape) == 2 and value.dtype is not None and value.dtype.is_integer():
        return (tokens,)
    if len(shape) == 3 and isinstance(shape[2], int):
        return (tokens, shape[2])
    if len(shape) == 4 and isinstance(shape[1], int) and isinstance(shape[3], int):
        return (shape[1], 0, shape[3])
    return None


def _tokens(batch: Array) -> int | None:
    """The number of tokens T of a batch [B, T, d] or [B, H, T, h]; None for rows, where only the graph knows it."""
    return {3: batch.shape[1], 4: batch.shape[-2]}.get(batch.ndim)


def _batches(source: ir.Value, probes: Array, heads: int, tokens: int) -> Iterator[tuple[Array, int]]:
    """Batches of probes in the source's shape, each with its number of images. Fixed sizes decide how many batches
    there are. Random probes come last, so they stand at various positions."""
    shape = source.shape
    rank = 3 if shape is None else len(shape)
    sizes = [] if shape is None else {2: [shape[0]], 3: shape[:2], 4: [shape[0], shape[2]]}.get(rank, [])
    fixed = [size if isinstance(size, int) else None for size in sizes]
    count = tokens if rank == 2 else (fixed[1:] or [None])[0] or len(probes)
    batch = (fixed or [None])[0] or -(-len(probes) // count)
    if rank == 2 and fixed[0] is not None:
        batch = max(1, fixed[0] // count)
    per_call = batch * count
    padded = np.pad(probes, ((0, -len(probes) % per_call), (0, 0)))
    for first in range(0, len(padded), per_call):
        rows = padded[first : first + per_call].reshape(batch, count, -1)
        if rank == 4:
            rows = rows.reshape(batch, count, heads, -1).swapaxes(1, 2)
        yield (rows.reshape(per_call, -1) if rank == 2 else rows), batch


def _by_token(result: Array, shape: tuple[int, ...]) -> Array:
    """Rows [B T, ...] of a result [B, H, T, h] or [B, T, ...]. ``shape``: of the source. Raises ValueError for a result
    that has no row per token."""
    tokens = math.prod(shape[:-1]) // (shape[1] if len(shape) == 4 else 1)
    if result.size % tokens:
        raise ValueError(f"of {tokens} tokens it makes {list(result.shape)}")
    if result.ndim == 4 and result.shape[0] * result.shape[2] == tokens:
        result = result.swapaxes(1, 2)
    return result.reshape(tokens, -1).astype(np.float32)
