"""Similarity of experts: of their outputs, of the weights that tokens give them, and of single hidden units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from moec.common.errors import MoecError
from moec.common.mapped_files import release_pages
from moec.ir import dialect
from moec.ir.expert_outputs import expert_output
from moec.ir.expert_weights import ExpertWeights
from moec.passes.graph.router_product import router_product
from moec.passes.weights.expert_set import ExpertSet
from moec.passes.weights.tiles import product
from moec.profiles.measures import evenly

Array = np.ndarray[Any, Any]
_MOST_OUTPUTS = 1 << 26
"""Elements of all experts' outputs that are in memory at once: 256 MB."""
_FEWEST_TOKENS = 16
_MOST_ROWS = 256
"""Tokens on which hidden units are compared."""
_DECIMALS = 5
"""Decimals of similarities that decide on groups: the last bits differ from processor to processor."""


def outputs_of(weights: ExpertWeights, tokens: Array) -> Array:
    """Outputs [E,n,width] of every expert for tokens [n,d], in float32; for fewer, evenly spaced tokens if they would
    take too much memory."""
    most = max(_FEWEST_TOKENS, _MOST_OUTPUTS // (weights.experts * weights.width))
    tokens = evenly(tokens, most)
    outputs = np.empty((weights.experts, len(tokens), weights.width), np.float32)
    for expert in range(weights.experts):
        outputs[expert] = expert_output(weights, expert, tokens)[1]
        release_pages()
    return outputs


def output_similarity(outputs: Array) -> Array:
    """The mean over tokens of the cosine between the outputs of two experts: [E,E] of [E,n,width]."""
    directions = _directions(outputs).reshape(len(outputs), -1)
    return np.round(product(directions, directions.T) / max(1, outputs.shape[1]), _DECIMALS)


def gate_similarity(experts: ExpertSet, tokens: Array, gates: Array) -> Array:
    """The cosine between the logits of two experts over tokens [n,d], if the router is a product with these, and else
    between their weights ``gates`` [n,E]: [E,E]."""
    x = dialect.inputs_of(experts.node)["x"]
    logits = None if x is None else router_product(experts.logits, x)
    profiles = gates if logits is None else logits(tokens)[:, : experts.stored]
    directions = _directions(np.ascontiguousarray(profiles.T, np.float32))
    return np.round(product(directions, directions.T), _DECIMALS)


def matching_units(weights: ExpertWeights, experts: Sequence[int], tokens: Array) -> list[Array]:
    """Match the hidden units of experts: an order of each one's units, so that unit i of all acts like unit i of the
    first.

    The similarity of two units is the cosine of their values on the tokens [n,d] plus the cosine of their weights. The
    matching has the largest sum of similarities (the assignment problem, as ReMatch and REAM, arXiv 2604.04356, pose
    it). Raises MoecError if scipy is not installed.
    """
    rows, size = evenly(tokens, _MOST_ROWS), max(weights.sizes[expert] for expert in experts)
    first = _of_units(weights, experts[0], rows, size)
    orders = [np.arange(size)]
    for expert in experts[1:]:
        alike = sum(
            product(own, other.T) for own, other in zip(first, _of_units(weights, expert, rows, size), strict=True)
        )
        orders.append(_assigned(np.round(alike, _DECIMALS)))
    return orders


def _of_units(weights: ExpertWeights, expert: int, rows: Array, size: int) -> tuple[Array, Array]:
    """Directions of the values of the first ``size`` units on rows, [size,n], and of their weights, [size,...]."""
    parts = [weights.decoded(part, expert) for part in weights.parts]
    columns = [part if name == "down" else part.T for name, part in zip(weights.parts, parts, strict=True)]
    for name in weights.before:
        bias = weights.bias(name)
        if bias is not None:
            columns.append(bias[expert].astype(np.float32)[:, None])
    activity = expert_output(weights, expert, rows)[0].T
    release_pages()
    return _directions(activity[:size]), _directions(np.concatenate(columns, axis=1)[:size])


def _directions(vectors: Array) -> Array:
    """Scale vectors along the last axis to length 1; zero vectors stay zero, and numbers that are not finite count as
    0."""
    finite = np.where(np.isfinite(vectors), vectors, 0)
    lengths = np.linalg.norm(finite, axis=-1, keepdims=True)
    return np.divide(finite, lengths, out=np.zeros_like(finite), where=lengths > 0)


def _assigned(alike: Array) -> Array:
    """The column that each row is matched with."""
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError:
        raise MoecError(
            'merging experts needs scipy, which is not installed; install it with: pip install "moec[specialise]"'
        ) from None
    return linear_sum_assignment(alike, maximize=True)[1]
