"""The head of a graph, from the last block's tokens to logits: a normalisation and one matrix.

The matrix is applied to every token, to the first, or to the mean of all; in a decoder to every token. Images whose
tokens are all the same unit vector give the matrix, and images of random tokens tell which tokens count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.common.errors import UnsupportedError
from moec.common.names import node_name
from moec.targets.hls.graph.affine import affine_maps
from moec.targets.hls.graph.between import nodes_between
from moec.targets.hls.graph.dense_layer import origin
from moec.targets.hls.graph.residuals import NORMS, norm_of
from moec.targets.hls.model.float_model import FloatHead
from moec.targets.hls.model.moved import by_image, moved
from moec.targets.hls.model.plan import Pool

Array = np.ndarray[Any, Any]

_TOLERANCE = 1e-4
_PROBES = 4
"""The number of images of random tokens."""
_MOST_NUMBERS = 1 << 24
"""The most numbers in the images of one call."""


def find_head(model: ir.Model, stream: ir.Value, result: ir.Value, tokens: int, width: int) -> FloatHead | None:
    """The head from the stream [B, T, d] to the model's result; None where these are the same value. Raises
    UnsupportedError, naming the node or value, where something else lies in between."""
    if result is stream:
        return None
    norm = _normalization(stream, result)
    normal = norm.outputs[0]
    taken = norm.inputs[0]
    assert taken is not None
    rows = tokens
    if taken is not stream:
        source = moved(model, stream, (tokens, width), taken)
        if not np.array_equal(source.places.reshape(-1), np.arange(width)) or not np.all(source.scales == 1):
            raise UnsupportedError(
                f"{node_name(norm)}: normalises neither all tokens nor the first; expected a mean of tokens only "
                "after the last normalisation"
            )
        rows = 1
    pool, weights, bias = _matrix(model, normal, result, rows, width)
    return FloatHead(node_name(norm), norm_of(norm), weights, bias, "first" if rows == 1 else pool)


def find_token_head(
    model: ir.Model, stream: ir.Value, results: Sequence[ir.Value], width: int, tokens: int
) -> tuple[ir.Value, FloatHead]:
    """The logits among a decoder's results, and the head that computes them for each token of the stream [B, T, d].
    Other results are keys and values. ``tokens``: of a sequence, for graphs whose rows are whole sequences.

    Raises UnsupportedError, naming the value, where no single result is computed by such a head.
    """
    by_result = [(result, _normalizations(stream, result)) for result in results]
    of_stream = [(result, norms) for result, norms in by_result if any(_normalizes(norm, stream) for norm in norms)]
    if len(of_stream) != 1 or len(of_stream[0][1]) != 1:
        counts = ", ".join(f"{result.name!r} with {len(norms)}" for result, norms in of_stream) or "none"
        raise UnsupportedError(
            f"results that normalise the last block's tokens {stream.name!r} are {counts}; expected one, by one "
            "normalisation"
        )
    ((result, (norm,)),) = of_stream
    ((weights, bias),) = affine_maps(model, norm.outputs[0], [result], width, tokens=tokens)
    return result, FloatHead(node_name(norm), norm_of(norm), weights, bias, "none")


def _normalizes(norm: ir.Node, stream: ir.Value) -> bool:
    return norm.inputs[0] is not None and origin(norm.inputs[0]) is origin(stream)


def _normalization(stream: ir.Value, result: ir.Value) -> ir.Node:
    nodes = _normalizations(stream, result)
    if len(nodes) != 1:
        raise UnsupportedError(
            f"between the last block's tokens {stream.name!r} and {result.name!r} are {len(nodes)} normalisations; "
            "expected one, and a product"
        )
    return nodes[0]


def _normalizations(stream: ir.Value, result: ir.Value) -> list[ir.Node]:
    return nodes_between(stream, result, lambda node: node.op_type in NORMS and node.domain == "")


def _matrix(model: ir.Model, normal: ir.Value, result: ir.Value, tokens: int, width: int) -> tuple[Pool, Array, Array]:
    """The tokens that count, and the weights [C, d] and bias [C] that they are multiplied with."""
    vectors = np.concatenate([np.zeros((1, width), np.float32), np.eye(width, dtype=np.float32)])
    step = max(1, _MOST_NUMBERS // (tokens * width))
    same = [
        _logits(model, normal, result, np.repeat(vectors[first : first + step, None], tokens, axis=1))
        for first in range(0, len(vectors), step)
    ]
    random = np.random.default_rng(3).normal(size=(_PROBES, tokens, width)).astype(np.float32)
    expected = _logits(model, normal, result, random)
    if expected.shape[1] not in (1, tokens):
        raise UnsupportedError(f"{result.name!r} has the shape {result.shape}; expected logits of images or of tokens")
    rows = np.concatenate(same)[:, 0]
    bias, weights = rows[0], (rows[1:] - rows[0]).T
    of_token = random @ weights.T + bias
    pools: dict[Pool, Array] = {"first": of_token[:, :1], "mean": of_token.mean(axis=1, keepdims=True)}
    if expected.shape[1] > 1:
        pools = {"none": of_token}
    for pool, computed in pools.items():
        if np.abs(computed - expected).max() <= _TOLERANCE * np.abs(expected).max():
            return pool, weights, bias
    raise UnsupportedError(
        f"{result.name!r} is not a product of the normalised tokens {normal.name!r}; expected one of each, of the "
        "first, or of their mean"
    )


def _logits(model: ir.Model, normal: ir.Value, result: ir.Value, images: Array) -> Array:
    """Logits [N, 1 or T, C] of normalised tokens [N, T, d]."""
    is_one = normal.shape is not None and len(normal.shape) == 2
    logits = by_image(model, normal, images[:, 0] if is_one else images, result).astype(np.float32)
    return logits if logits.ndim == 3 else logits.reshape(len(images), 1, -1)
