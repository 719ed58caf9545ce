"""Judges of placements: the loads of ranks, and pairs of experts that are selected together but computed on different
ranks. Estimates are made from sums over tokens; exact counts from traces, by the rule that programs follow
(:meth:`moec.placing.placement.LayerPlacement.destinations`).

Sizes: E experts, R ranks, N nodes, T tokens, k experts per token, W windows of time. A *trace* of a layer is int [T,k],
the experts of each token, -1 for none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from moec.placing.placement import ExpertPlacement, LayerPlacement

Array = np.ndarray[Any, Any]


def holding(layer: LayerPlacement) -> Array:
    """Make the matrix bool [E,R] of the ranks that hold each expert."""
    holders = np.zeros((layer.experts, len(layer.slots)), bool)
    for rank, slots in enumerate(layer.slots):
        holders[list(slots), rank] = True
    return holders


def shares(holders: Array, nodes: int) -> Array:
    """Compute the share of an expert's rows that each rank computes, where all ranks have equally many tokens.

    ``holders`` is bool [...,R]; the result is float [...,R] with sums of 1. A node's rows stay on the node where it
    holds the expert, and otherwise go to all holders alike."""
    by_node = holders.reshape(*holders.shape[:-1], nodes, holders.shape[-1] // nodes)
    of_node = by_node.sum(-1, keepdims=True)
    without = (of_node == 0).sum(-2, keepdims=True)
    every = of_node.sum(-2, keepdims=True)
    return (by_node * (1 / np.maximum(of_node, 1) + without / every) / nodes).reshape(holders.shape)


def rank_loads(layer: LayerPlacement, loads: Array, nodes: int = 1) -> Array:
    """Estimate the rows [...,R] that come to each rank, for loads [...,E]."""
    return loads @ shares(holding(layer), nodes)


def imbalance(loads: Array) -> float:
    """Divide the highest load of a rank by the mean, for loads [R] or [W,R], of which the mean over windows is taken.
    Without any load it is 1."""
    loads = np.atleast_2d(loads)
    means = loads.mean(axis=-1)
    return float(np.mean(np.divide(loads.max(axis=-1), means, out=np.ones(len(loads)), where=means > 0)))


def pairs_of(trace: Array, experts: int) -> Array:
    """Count the tokens [E,E] that select both experts; on the diagonal, those of each expert."""
    chosen = _chosen(trace, experts)
    return np.rint(chosen.T @ chosen).astype(np.int64)


def following_of(trace: Array, after: Array, experts: int, experts_after: int) -> Array:
    """Count the tokens [E,E'] that select an expert of a layer and one of the next layer."""
    return np.rint(_chosen(trace, experts).T @ _chosen(after, experts_after)).astype(np.int64)


def _chosen(trace: Array, experts: int) -> Array:
    chosen = np.zeros((len(trace), experts + 1), np.float32)
    np.put_along_axis(chosen, np.where((trace >= 0) & (trace < experts), trace, experts).astype(np.int64), 1, 1)
    return chosen[:, :experts]


@dataclasses.dataclass(frozen=True)
class JudgedLayer:
    """Counts of a layer's trace. ``imbalance``: highest load of a rank over the mean, as the mean over windows.
    ``crossing``: of all pairs of experts that a token selects together, the share that is computed on two ranks;
    ``crossing_nodes``: on two nodes. ``sent``: ranks to which a token is sent; ``sent_nodes``: nodes; both as means."""

    name: str
    imbalance: float
    crossing: float
    crossing_nodes: float
    sent: float
    sent_nodes: float


def judge(placement: ExpertPlacement, traces: Sequence[Array], windows: int = 1) -> list[JudgedLayer]:
    """Judge a placement by a trace of each layer, exactly; tokens of a window belong to the ranks in equal parts."""
    pairs = zip(placement.layers, traces, strict=True)
    return [_judged(layer, trace, placement.nodes, windows) for layer, trace in pairs]


def _judged(layer: LayerPlacement, trace: Array, nodes: int, windows: int) -> JudgedLayer:
    ranks = len(layer.slots)
    loads, together = np.zeros((windows, ranks)), np.zeros(5)
    for window, tokens in enumerate(np.array_split(trace, windows)):
        for rank, own in enumerate(np.array_split(tokens, ranks)):
            valid = (own >= 0) & (own < layer.experts)
            to = np.where(valid, layer.destinations(own, rank, nodes), -1)
            loads[window] += np.bincount(to[valid], minlength=ranks)
            node_of = np.where(valid, to // (ranks // nodes), -1)
            together += (
                *_crossing(to),
                _crossing(node_of)[1],
                _sent(to, rank),
                _sent(node_of, rank // (ranks // nodes)),
            )
    every, crossing, crossing_nodes, sent, sent_nodes = together
    return JudgedLayer(
        layer.name,
        imbalance(loads),
        crossing / max(1, every),
        crossing_nodes / max(1, every),
        sent / max(1, len(trace)),
        sent_nodes / max(1, len(trace)),
    )


def _crossing(to: Array) -> tuple[int, int]:
    """Count the pairs of places of tokens [T,k], and those whose places differ; a place is none where it is -1."""
    first, second = np.triu_indices(to.shape[1], 1)
    both = (to[:, first] >= 0) & (to[:, second] >= 0)
    return int(both.sum()), int((both & (to[:, first] != to[:, second])).sum())


def _sent(to: Array, own: int) -> int:
    """Count the distinct places of each token, other than its own."""
    ordered = np.sort(np.where(to == own, -1, to), axis=1)
    return int((ordered >= 0).sum() - ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).sum())
