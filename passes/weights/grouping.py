"""Groups of experts that become one expert each, around the most salient experts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moec.passes.weights.expert_set import ExpertSet
from moec.passes.weights.fewer_experts import best, saliency
from moec.passes.weights.merging import Merged, merged
from moec.passes.weights.similarity import (
    gate_similarity,
    matching_units,
    output_similarity,
    outputs_of,
)
from moec.profiles.measures import ExpertsMeasures

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class Grouping:
    """``groups`` of several experts each, the first of which stands for all. ``why``: the reason for each other's
    group."""

    groups: Sequence[Merged]
    why: Mapping[int, str]

    @property
    def joined(self) -> dict[int, int]:
        """The expert that stands for each expert that became part of another."""
        return {expert: group.experts[0] for group in self.groups for expert in group.experts[1:]}


def by_centroids(experts: ExpertSet, measures: ExpertsMeasures, count: int, most: int) -> Grouping:
    """REAM's groups (arXiv 2604.04356): the ``count`` most salient experts absorb the others, in groups of at most
    ``most``."""
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


def _averaged(experts: ExpertSet, members: Sequence[int], scores: Array, tokens: Array) -> Merged:
    orders = matching_units(experts.weights, members, tokens)
    return merged(members, [float(scores[member]) for member in members], orders)
