"""How alike experts are: their outputs, the weights that tokens give them, and their hidden units, one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from moec.errors import MoecError
from moec.ir import dialect
from moec.ir.mapped_files import release_pages
from moec.ir.weights.experts import ExpertWeights
from moec.ir.weights.outputs import expert_output
from moec.passes.graph.router_product import router_product
from moec.passes.weights.expert_set import ExpertSet
from moec.passes.weights.tiles import product
from moec.profile.measures import evenly

Array = np.ndarray[Any, Any]
_MOST_OUTPUTS = 1 << 26
"""Elements of all experts' outputs that are held together: 256 MB."""
_FEWEST_TOKENS = 16
_MOST_ROWS = 256
"""Tokens on which hidden units are compared."""
_DECIMALS = 5
"""Of similarities that decide what goes together: the last bits differ from processor to processor."""


def outputs_of(weights: ExpertWeights, tokens: Array) -> Array:
    """What every expert makes of tokens [n,d]: [E,n,width] in float32, of fewer tokens, evenly chosen, where it would
    be much."""
    most = max(_FEWEST_TOKENS, _MOST_OUTPUTS // (weights.experts * weights.width))
    tokens = evenly(tokens, most)
    found = np.empty((weights.experts, len(tokens), weights.width), np.float32)
    for expert in range(weights.experts):
        found[expert] = expert_output(weights, expert, tokens)[1]
        release_pages()
    return found


def output_similarity(outputs: Array) -> Array:
    """The mean over tokens of the cosine between the outputs of two experts: [E,E] of [E,n,width]."""
    directions = _directions(outputs).reshape(len(outputs), -1)
    return np.round(product(directions, directions.T) / max(1, outputs.shape[1]), _DECIMALS)


def gate_similarity(experts: ExpertSet, tokens: Array, gates: Array) -> Array:
    """The cosine between what two experts' logits are for tokens [n,d], where the router is a product with them, and
    else between their weights ``gates`` [n,E]: [E,E]."""
    x = dialect.inputs_of(experts.node)["x"]
    logits = None if x is None else router_product(experts.logits, x)
    profiles = gates if logits is None else logits(tokens)[:, : experts.stored]
    directions = _directions(np.ascontiguousarray(profiles.T, np.float32))
    return np.round(product(directions, directions.T), _DECIMALS)


def matching_units(weights: ExpertWeights, experts: Sequence[int], tokens: Array) -> list[Array]:
    """Of each expert the order of its hidden units, so that unit i of all does what unit i of the first does.

    Two units are alike as the cosine of what they are on the tokens [n,d] and the cosine of their weights together; of
    all ways to match units that with the largest sum is taken (the assignment problem, as ReMatch and REAM, arXiv
    2604.04356, pose it). Raises MoecError where scipy is not installed.
    """
    rows, size = evenly(tokens, _MOST_ROWS), max(weights.sizes[expert] for expert in experts)
    first = _of_units(weights, experts[0], rows, size)
    orders = [np.arange(size)]
    for expert in experts[1:]:
        alike = sum(
            product(one, other.T) for one, other in zip(first, _of_units(weights, expert, rows, size), strict=True)
        )
        orders.append(_assigned(np.round(alike, _DECIMALS)))
    return orders


def _of_units(weights: ExpertWeights, expert: int, rows: Array, size: int) -> tuple[Array, Array]:
    """The directions of what the first ``size`` units are on rows [size,n], and of their weights [size,...]."""
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
    """Vectors along the last axis of length 1; zeros, and what is not finite, become zeros."""
    finite = np.where(np.isfinite(vectors), vectors, 0)
    lengths = np.linalg.norm(finite, axis=-1, keepdims=True)
    return np.divide(finite, lengths, out=np.zeros_like(finite), where=lengths > 0)


def _assigned(alike: Array) -> Array:
    """For every row the column that it is matched with."""
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError:
        raise MoecError(
            'merging experts needs scipy, which is not installed; install it with: pip install "moec[specialise]"'
        ) from None
    return linear_sum_assignment(alike, maximize=True)[1]
