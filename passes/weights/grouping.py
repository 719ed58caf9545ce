"""Which experts of a layer become one: those around the most salient, or clusters of equal outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moec.errors import MoecError
from moec.passes.weights.expert_set import ExpertSet
from moec.passes.weights.fewer_experts import best, frequency, saliency
from moec.passes.weights.merging import Merged, merged
from moec.passes.weights.similarity import (
    NEEDS_SCIPY,
    gate_similarity,
    matching_units,
    output_similarity,
    outputs_of,
)
from moec.profile.measures import ExpertsMeasures

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class Grouping:
    """``groups`` of several experts each, the first of which stands for all, and of every other ``why`` it is there."""

    groups: Sequence[Merged]
    why: Mapping[int, str]

    @property
    def joined(self) -> dict[int, int]:
        """Of every expert that became part of another, that one."""
        return {expert: group.experts[0] for group in self.groups for expert in group.experts[1:]}


def by_centroids(experts: ExpertSet, measures: ExpertsMeasures, count: int, most: int) -> Grouping:
    """REAM's groups (arXiv 2604.04356): the ``count`` most salient experts take up the others, at most ``most``
    together."""
    scores, tokens, weights = saliency(measures), measures.array("sample"), experts.weights
    outputs = output_similarity(outputs_of(weights, tokens))
    alike = (outputs + gate_similarity(experts, tokens, measures.array("sample_gates"))) / 2
    kept = [expert for expert in best(experts, scores, count) if expert < experts.stored]
    free = [expert for expert in range(experts.stored) if expert not in kept]
    groups, why = [], {}
    for centroid in sorted(kept, key=lambda expert: (-scores[expert], expert)):
        near = sorted(free, key=lambda expert: (-alike[centroid, expert], expert))[: most - 1]
        free = [expert for expert in free if expert not in near]
        why |= {
            expert: f"ream, similarity {alike[centroid, expert]:.3f}, saliency {max(0, scores[expert]):.4g}"
            for expert in near
        }
        if near:
            groups.append(_averaged(experts, [centroid, *near], np.maximum(scores, 0), tokens))
    return Grouping(groups, why)


def by_clusters(experts: ExpertSet, measures: ExpertsMeasures, count: int) -> Grouping:
    """HC-SMoE's groups (arXiv 2410.08589): ``count`` clusters of mean outputs, by average linkage of distances."""
    scores, tokens = np.maximum(frequency(measures), 0), measures.array("sample")
    means = outputs_of(experts.weights, tokens).mean(axis=1, dtype=np.float64)
    clusters = _linked(means, count)
    groups, why = [], {}
    for cluster in range(max(clusters) + 1):
        members = [expert for expert in range(experts.stored) if clusters[expert] == cluster]
        if len(members) == 1:
            continue
        first, *others = sorted(members, key=lambda expert: (-scores[expert], expert))
        length = max(float(np.linalg.norm(means[first])), 1e-300)
        why |= {
            expert: f"hc-smoe, mean output {np.linalg.norm(means[expert] - means[first]) / length:.1%} away, "
            f"{scores[expert]:.0f} tokens"
            for expert in others
        }
        groups.append(_averaged(experts, [first, *others], scores, tokens))
    return Grouping(groups, why)


def _averaged(experts: ExpertSet, members: Sequence[int], scores: Array, tokens: Array) -> Merged:
    orders = matching_units(experts.weights, members, tokens)
    return merged(members, [float(scores[member]) for member in members], orders)


def _linked(points: Array, count: int) -> list[int]:
    """The cluster of each point [n,d], of ``count``."""
    if not np.isfinite(points).all():
        raise MoecError(
            "outputs of experts on the tokens of the profile are not finite; their clusters cannot be found"
        )
    try:
        from scipy.cluster.hierarchy import cut_tree, linkage
    except ImportError:
        raise MoecError(NEEDS_SCIPY) from None
    return [int(cluster) for cluster in cut_tree(linkage(points, "average"), n_clusters=count)[:, 0]]
