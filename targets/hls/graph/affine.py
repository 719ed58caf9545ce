"""What a part of a graph makes of tokens, as one matrix: found by running it, whatever its nodes are.

Unit vectors give the matrix, and random vectors at various positions must agree with it. So whatever is not the same
product for every token is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.errors import UnsupportedError
from moec.ir.interpreter import EvaluationError
from moec.targets.hls.graph.calibrate import evaluate

Array = np.ndarray[Any, Any]

MOST_ELEMENTS = 1 << 24
"""Of an image: more than 2000 x 2000 pixels of 3 channels."""
_PROBES = 16
"""Random vectors beside the unit vectors."""
_TOLERANCE = 1e-4
"""The error that is allowed of what a matrix computes, as a part of its largest result."""


def affine_maps(
    model: ir.Model, source: ir.Value, results: Sequence[ir.Value], width: int, *, heads: int = 0, tokens: int = 1
) -> list[tuple[Array, Array]]:
    """For each result its weights [out, width] and bias [out], as a function of a token of the source: [B, T, width],
    [B T, width] where the graph holds no more than rows, or [B, H, T, width / H] with ``heads``. Rows are whole images
    of ``tokens``.

    Raises UnsupportedError where it is no such function of the source alone.
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
            raise UnsupportedError(f"{results[0].name!r} is not made of {source.name!r} alone: {error}") from error
    found = []
    for part in zip(*parts, strict=True):
        rows = np.concatenate(part)
        expected = rows[width + 1 : len(probes)]
        with np.errstate(invalid="ignore"):  # infinities are no product
            bias, weights = rows[0], (rows[1 : width + 1] - rows[0]).T
            error = np.abs(probes[width + 1 :] @ weights.T + bias - expected).max(initial=0.0)
        if not error <= _TOLERANCE * np.abs(expected).max(initial=0.0):
            raise UnsupportedError(f"{results[0].name!r} is more than a product per token of {source.name!r}")
        found.append((weights, bias))
    return found


def random_inputs(model: ir.Model, images: int, tokens: int | None = None) -> dict[ir.Value, Array]:
    """The model's inputs where all sizes but the first are known and no larger than those of images, with random
    numbers in ``images`` rows: for what asks them for their shape. What uses the numbers themselves differs from token
    to token. With ``tokens`` those of text, too: of that many tokens, and caches that hold none."""
    random = np.random.default_rng(1)
    found = {}
    for value in model.graph.inputs:
        sizes = sizes_behind_first(value)
        if sizes is None and tokens is not None:
            sizes = _sizes_of_text(value, tokens)
        if value.dtype is None or value.shape is None or sizes is None or math.prod(sizes) > MOST_ELEMENTS:
            continue
        first = value.shape[0]
        shape = (first if isinstance(first, int) else images, *sizes)
        found[value] = random.integers(0, 2, shape, np.uint8).astype(value.dtype.numpy())
    return found


def sizes_behind_first(value: ir.Value) -> tuple[int, ...] | None:
    """A value's sizes but for the first, of the batch; None where one is not known, or none is there."""
    if value.shape is None or not len(value.shape):
        return None
    found = tuple(size for size in list(value.shape)[1:] if isinstance(size, int))
    return found if len(found) == len(value.shape) - 1 else None


def _sizes_of_text(value: ir.Value, tokens: int) -> tuple[int, ...] | None:
    """Of integers [B, T], tokens [B, T, d], and a cache [B, H, P, h] without positions."""
    shape = [] if value.shape is None else list(value.shape)
    if len(shape) == 2 and value.dtype is not None and value.dtype.is_integer():
        return (tokens,)
    if len(shape) == 3 and isinstance(shape[2], int):
        return (tokens, shape[2])
    if len(shape) == 4 and isinstance(shape[1], int) and isinstance(shape[3], int):
        return (shape[1], 0, shape[3])
    return None


def _tokens(batch: Array) -> int | None:
    """Of a sequence in a batch [B, T, d] or [B, H, T, h]; None where only the graph knows."""
    return {3: batch.shape[1], 4: batch.shape[-2]}.get(batch.ndim)


def _batches(source: ir.Value, probes: Array, heads: int, tokens: int) -> Iterator[tuple[Array, int]]:
    """The probes as inputs of the source's shape, and how many images each is, in as many calls as its fixed sizes
    take. Random ones come last and stand at various positions."""
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
    """[B, H, T, h] or [B, T, ...] → [B T, ...], of a source of this shape. Raises ValueError for other results."""
    tokens = math.prod(shape[:-1]) // (shape[1] if len(shape) == 4 else 1)
    if result.size % tokens:
        raise ValueError(f"of {tokens} tokens it makes {list(result.shape)}")
    if result.ndim == 4 and result.shape[0] * result.shape[2] == tokens:
        result = result.swapaxes(1, 2)
    return result.reshape(tokens, -1).astype(np.float32)
