"""Ranks of a plan: the placement of its experts, with what it is worth."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from typing import cast

import numpy as np
import onnx_ir as ir

from moec.placing.judge import imbalance, rank_loads
from moec.placing.place import DEFAULT_METHOD, Method, place_in_order, place_measured
from moec.placing.placement import ExpertPlacement, linear
from moec.placing.plan import ExpertPlan
from moec.profiles import Profile
from moec.profiles.measures import ExpertsMeasures


@dataclasses.dataclass(frozen=True)
class RanksTask:
    """Ranks to place experts on; fields as those of :func:`moec.placing.place.place`."""

    ranks: int
    nodes: int = 1
    replicas: int = 0
    method: str = DEFAULT_METHOD
    slack: float = 0.0


def place_on_ranks(
    plan: ExpertPlan,
    task: RanksTask,
    profile: str | os.PathLike[str] | None,
    nodes: Sequence[ir.Node] | None = None,
) -> tuple[ExpertPlan, str]:
    """Place the layers of a plan, by the loads in a profile or, without one, consecutive experts on consecutive ranks.
    ``nodes``: the layers in a model; None: those of the profile, in its order. Returns the plan and a remark about its
    predicted imbalance. Raises MoecError as :func:`moec.placing.place.place`."""
    names = [layer.name for layer in plan.layers]
    if profile is None:
        sizes = [(layer.name, layer.experts) for layer in plan.layers]
        placement = place_in_order(sizes, task.ranks, task.nodes, task.replicas)
        return plan.placed(
            placement
        ), "the loads of ranks are not known without a profile: experts are placed by number"
    with contextlib.closing(Profile.read(profile)) as measured:
        measures = list(measured.all_experts()) if nodes is None else [measured.experts(node) for node in nodes]
        numbers = (task.ranks, task.nodes, task.replicas, cast(Method, task.method))  # place refuses others
        placement = place_measured(measures, *numbers, names=names, slack=task.slack)
        return plan.placed(placement), _predicted(placement, measures)


def _predicted(placement: ExpertPlacement, measures: Sequence[ExpertsMeasures]) -> str:
    """Describe the imbalance of a placement beside that of experts in order."""
    planned, in_order = [], []
    for layer, measured in zip(placement.layers, measures, strict=True):
        first = linear(layer.name, layer.experts, placement.ranks)
        planned.append(imbalance(rank_loads(layer, measured.count, placement.nodes)))
        in_order.append(imbalance(rank_loads(first, measured.count, placement.nodes)))
    return (
        f"predicted imbalance, the highest load of a rank over the mean: {np.mean(planned):.3f} as the mean of layers, "
        f"{max(planned):.3f} at most; of experts in order {np.mean(in_order):.3f} and {max(in_order):.3f}"
    )
