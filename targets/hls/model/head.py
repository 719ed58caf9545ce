"""The head of a graph: from the last block's tokens to logits.

A normalisation and one matrix, of every token, of the first, or of the mean of all: found by running the nodes on
images whose tokens are all the same unit vector; images of random tokens tell which it is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from moec.errors import UnsupportedError
from moec.ir.names import node_name
from moec.targets.hls.graph.residuals import NORMS, norm_of
from moec.targets.hls.model.float_model import FloatHead
from moec.targets.hls.model.moved import by_image, moved
from moec.targets.hls.model.plan import Pool

Array = np.ndarray[Any, Any]

_TOLERANCE = 1e-4
_MOST_NUMBERS = 1 << 25
"""Of images of tokens that are run at once."""


def find_head(model: ir.Model, stream: ir.Value, result: ir.Value, tokens: int, width: int) -> FloatHead | None:
    """None where the stream [B, T, d] is the model's result. Raises UnsupportedError, naming what is something else."""
    if result is stream:
        return None
    norm = _normalization(stream, result)
    normal = norm.outputs[0]
    taken = norm.inputs[0]
    assert taken is not None
    rows = tokens
    if taken is not stream:
        found = moved(model, stream, (tokens, width), taken)
        if not np.array_equal(found.places.reshape(-1), np.arange(width)) or not np.all(found.scales == 1):
            raise UnsupportedError(
                f"{node_name(norm)}: normalises something else than all tokens or the first; a mean of tokens is taken "
                "behind the last normalisation"
            )
        rows = 1
    pool, weights, bias = _matrix(model, normal, result, rows, width)
    return FloatHead(node_name(norm), norm_of(norm), weights, bias, "first" if rows == 1 else pool)


def _normalization(stream: ir.Value, result: ir.Value) -> ir.Node:
    found: list[ir.Node] = []
    seen: set[ir.Node] = set()
    pending = [result]
    while pending:
        value = pending.pop()
        node = None if value is stream else value.producer()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.op_type in NORMS and node.domain == "":
            found.append(node)
        pending += [operand for operand in node.inputs if operand is not None]
    if len(found) != 1:
        raise UnsupportedError(
            f"between the last block's tokens {stream.name!r} and {result.name!r} are {len(found)} normalisations; "
            "expected one, and a product"
        )
    return found[0]


def _matrix(model: ir.Model, normal: ir.Value, result: ir.Value, tokens: int, width: int) -> tuple[Pool, Array, Array]:
    """Which tokens [T, d] count, and their weights [C, d] and bias [C]."""
    of_all = np.repeat(np.eye(width, dtype=np.float32)[:, None], tokens, axis=1)
    random = np.random.default_rng(3).normal(size=(4, tokens, width)).astype(np.float32)
    squeezed = normal.shape is not None and len(normal.shape) == 2
    results = []
    for images in (np.zeros((1, tokens, width), np.float32), of_all, random):
        step = max(1, _MOST_NUMBERS // (tokens * width))
        parts = [images[start : start + step] for start in range(0, len(images), step)]
        found = [by_image(model, normal, part[:, 0] if squeezed else part, result) for part in parts]
        results.append(np.concatenate(found).astype(np.float32))
    nothing, every, expected = results
    if expected.ndim not in (2, 3) or (expected.ndim == 3 and expected.shape[1] not in (1, tokens)):
        raise UnsupportedError(f"{result.name!r} has the shape {result.shape}; expected logits of images or of tokens")
    by_token = expected.ndim == 3 and expected.shape[1] > 1
    if not by_token:
        nothing, every, expected = (one.reshape(len(one), 1, -1) for one in results)
    bias = nothing[0, 0]
    weights = (every[:, 0] - bias).T
    pools: list[Pool] = ["none"] if by_token else ["first", "mean"]
    for pool in pools:
        of_token = random @ weights.T + bias
        computed = {"none": of_token, "first": of_token[:, :1], "mean": of_token.mean(axis=1, keepdims=True)}[pool]
        if np.abs(computed - expected).max() <= _TOLERANCE * np.abs(expected).max():
            return pool, weights, bias
    raise UnsupportedError(
        f"{result.name!r} is no product of the normalised tokens {normal.name!r}, of each, of the first, or of their "
        "mean"
    )
