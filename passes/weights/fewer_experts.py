"""Selection of the experts to remove: the layers that lose some, the number that each keeps, and the lowest scores."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from moec.common.errors import MoecError, UnsupportedError
from moec.common.names import node_name
from moec.ir import dialect
from moec.passes.framework.base import Report
from moec.passes.weights.expert_set import ExpertSet
from moec.profiles.measures import ExpertsMeasures

Array = np.ndarray[Any, Any]
PerLayer = Literal["uniform", "global"]
UNSEEN = -1.0
"""The score of an expert that saw no token."""
_LAYERS = re.compile(r"\d{1,6}(-\d{1,6})?(\+\d{1,6}(-\d{1,6})?)*")


def layers_of(pass_name: str, graph: ir.Graph, text: str | None, report: Report) -> list[ir.Node]:
    """The layers of experts that a text such as ``0-3+7`` names, in the order of the graph; all for None.

    Raises MoecError for any other text, and for a layer that the model does not have.
    """
    nodes = [node for node in graph if dialect.has_experts(node)]
    if not nodes:
        report.warn(pass_name, "model", "no expert goes: no MoE block was raised before this pass")
    if text is None or not nodes:
        return nodes
    if not _LAYERS.fullmatch(text):
        raise MoecError(f"{pass_name}: layers is {text!r}; expected numbers and ranges of layers, such as 0-3+7")
    numbers: set[int] = set()
    for part in text.split("+"):
        first, _, last = part.partition("-")
        numbers.update(range(int(first), int(last or first) + 1))
    if not numbers or max(numbers) >= len(nodes):
        raise MoecError(f"{pass_name}: layers is {text!r}; the model has the layers 0 to {len(nodes) - 1}")
    return [node for number, node in enumerate(nodes) if number in numbers]


def expert_set(pass_name: str, node: ir.Node, report: Report) -> ExpertSet | None:
    """The experts of a layer; None, with the reason in the report, if none can be removed."""
    try:
        experts = ExpertSet(node)
    except UnsupportedError as error:
        report.warn(pass_name, node_name(node), f"keeps all experts: {error}")
        return None
    if feasible_counts(experts):
        return experts
    reason = experts.feasible(range(experts.routed)) or "its groups cannot be smaller"
    report.warn(pass_name, node_name(node), f"keeps all experts: {reason}")
    return None


def feasible_counts(experts: ExpertSet) -> list[int]:
    """All possible numbers of stored experts after a removal that takes equally many from each group."""
    groups = experts.routing.groups
    if groups > 1 and experts.identity:
        return []
    scores = np.zeros(experts.stored)
    return [
        count
        for count in range(groups, experts.stored + 1, groups)
        if experts.feasible(best(experts, scores, count)) is None
    ]


def best(experts: ExpertSet, scores: Array, count: int) -> list[int]:
    """The ``count`` stored experts with the highest scores [stored], equally many of each group, ties to the lower id,
    and all identity experts; in ascending order."""
    groups = experts.routing.groups
    size = experts.stored // groups
    kept: list[int] = []
    for group in range(groups):
        order = np.argsort(-scores[group * size : (group + 1) * size], kind="stable")
        kept += sorted(int(expert) + group * size for expert in order[: count // groups])
    return [*kept, *range(experts.stored, experts.routed)]


@dataclasses.dataclass(frozen=True)
class Scored:
    """A layer whose experts have scores [stored]; the lowest are removed first."""

    experts: ExpertSet
    scores: Array

    @property
    def name(self) -> str:
        return node_name(self.experts.node)


def check_keep(pass_name: str, keep: float) -> None:
    """Raises MoecError unless ``keep`` is a share or a whole number."""
    if not 0 < keep <= 1 and not (math.isfinite(keep) and keep > 1 and keep == int(keep)):
        raise MoecError(
            f"{pass_name}: keep is {keep:g}; expected a share of the experts, above 0, up to 1, or the number that a "
            "layer keeps"
        )


def uniform_counts(pass_name: str, layers: Sequence[ExpertSet], keep: float) -> list[int]:
    """Numbers of stored experts that the layers keep: the same share of each, or the same number.

    Raises MoecError, with the nearest possible number, if a layer cannot keep that many.
    """
    return [_uniform_count(pass_name, experts, keep) for experts in layers]


def _uniform_count(pass_name: str, experts: ExpertSet, keep: float) -> int:
    feasible, groups = feasible_counts(experts), experts.routing.groups
    target = int(keep) if keep > 1 else groups * _rounded(keep * experts.stored / groups)
    if target in feasible:
        return target
    nearest = min(feasible, key=lambda count: abs(count - target))
    raise MoecError(
        f"{pass_name}: node {node_name(experts.node)}: cannot keep {target} of {experts.stored} experts, of which "
        f"{experts.routing.k} are chosen in {groups} group{'s' if groups > 1 else ''}; the nearest possible is "
        f"{nearest}"
    )


def global_counts(pass_name: str, layers: Sequence[Scored], keep: float) -> list[int]:
    """Numbers of stored experts that the layers keep if ``keep`` is a share of all, or a number per layer on average.
    The lowest scores of all layers go, each as a share of the mean of its layer.

    Raises MoecError, with the nearest possible number, if the layers cannot keep that many.
    """
    counts = [layer.experts.stored for layer in layers]
    least = [feasible_counts(layer.experts)[0] for layer in layers]
    target = int(keep) * len(layers) if keep > 1 else _rounded(keep * sum(counts))
    if not sum(least) <= target <= sum(counts):
        raise MoecError(
            f"{pass_name}: cannot keep {target} of {sum(counts)} experts in {len(layers)} layers; the nearest possible "
            f"is {min(max(target, sum(least)), sum(counts))}"
        )
    steps = sorted((score, place) for place, layer in enumerate(layers) for score in _steps(layer))
    for _, place in steps:
        size = layers[place].experts.routing.groups
        if counts[place] - size >= least[place] and sum(counts) - size >= target:
            counts[place] -= size
    return counts


def _steps(layer: Scored) -> list[float]:
    """Costs of removing one more expert of each group, in ascending order, as shares of the layer's mean score."""
    by_group = np.sort(layer.scores.reshape(layer.experts.routing.groups, -1), axis=1).mean(axis=0)
    seen = layer.scores[layer.scores > 0]
    return [float(score) for score in (by_group / seen.mean() if len(seen) else by_group)]


def _rounded(number: float) -> int:
    return math.floor(number + 0.5)


def saliency(measures: ExpertsMeasures) -> Array:
    """REAP's scores [E]."""
    measured = measures.measured
    return np.divide(measures.array("saliency"), measured, out=np.full(len(measured), UNSEEN), where=measured > 0)


def frequency(measures: ExpertsMeasures) -> Array:
    """Number of tokens of each expert [E]."""
    count = measures.count.astype(np.float64)
    return np.where(count > 0, count, UNSEEN)
