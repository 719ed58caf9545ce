"""``moec plan --ranks``: a placement of experts on ranks, for reading and editing, with what it is worth."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import zipfile
from collections.abc import Sequence
from typing import cast

import numpy as np
import onnx_ir as ir

from moec.artifacts.placing import placement_on
from moec.common.errors import MoecError, reporting
from moec.common.names import node_name
from moec.compiling import compiler
from moec.ir import dialect
from moec.ir.expert_weights import ExpertWeights
from moec.passes import pipeline
from moec.passes.framework.base import Report
from moec.placing.judge import imbalance, rank_loads
from moec.placing.place import DEFAULT_METHOD, Method, place_in_order, place_measured
from moec.placing.placement import ExpertPlacement, linear
from moec.profiles import Profile
from moec.profiles.measures import ExpertsMeasures
from moec.runtime.manifest import MANIFEST


@dataclasses.dataclass(frozen=True)
class RanksTask:
    """Ranks to place experts on; fields as those of :func:`moec.placing.place.place`."""

    ranks: int
    nodes: int = 1
    replicas: int = 0
    method: str = DEFAULT_METHOD
    slack: float = 0.0


@reporting("planning")
def plan_on_ranks(
    source: str | os.PathLike[str],
    task: RanksTask,
    profile: str | os.PathLike[str] | None = None,
    passes: str = "O2",
) -> tuple[ExpertPlacement, list[str]]:
    """Place the experts of ``source``: a profile, a model, or an artifact that was compiled for ranks.

    A model with ``profile`` is placed after ``passes``, those of the profile. Without a profile, consecutive experts
    come to consecutive ranks. Returns the placement and remarks about its predicted imbalance. Raises MoecError as
    :func:`moec.placing.place.place`, and where there are no experts to place.
    """
    path = pathlib.Path(source)
    if _holds(path, "profile.json"):
        return _by_profile(path, task, None)
    if _holds(path, MANIFEST):
        if profile is not None:
            return _by_profile(profile, task, None)
        return placement_on(path, task.ranks, task.nodes, task.replicas), [_UNKNOWN]
    graph = compiler.import_model(path, cache=False)
    pipeline.run(graph, pipeline.parse(passes), Report())
    nodes = [node for node in graph.graph if dialect.has_experts(node)]
    if not nodes:
        raise MoecError(f"{path}: has no layer of experts that could be placed on ranks")
    if profile is not None:
        return _by_profile(profile, task, nodes)
    sizes = [(node_name(node), ExpertWeights(node).experts) for node in nodes]
    return place_in_order(sizes, task.ranks, task.nodes, task.replicas), [_UNKNOWN]


_UNKNOWN = "without a profile the loads of ranks are not known, and experts are placed by number"


def _holds(path: pathlib.Path, name: str) -> bool:
    """Whether a folder or zip has a file of this name."""
    if path.is_dir():
        return (path / name).is_file()
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return name in archive.namelist()


def _by_profile(
    profile: str | os.PathLike[str], task: RanksTask, nodes: Sequence[ir.Node] | None
) -> tuple[ExpertPlacement, list[str]]:
    """Place the layers of a profile, or ``nodes`` by what it says about them."""
    with contextlib.closing(Profile.read(profile)) as measured:
        measures = list(measured.all_experts()) if nodes is None else [measured.experts(node) for node in nodes]
        names = None if nodes is None else [node_name(node) for node in nodes]
        if not measures:
            raise MoecError(f"{os.fspath(profile)}: has no layers of experts; there is nothing to place")
        numbers = (task.ranks, task.nodes, task.replicas, cast(Method, task.method))  # place refuses others
        placement = place_measured(measures, *numbers, names=names, slack=task.slack)
        return placement, [_predicted(placement, measures)]


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
