"""The workload of an artifact on several ranks: its layers of experts and the times of all else, by its kernels.

Products of experts follow from the model alone; all other kernels take their least times of :mod:`moec.exploring`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from moec import targets
from moec.common.dtypes import DTYPES
from moec.common.errors import MoecError
from moec.common.roofline import FLOAT32
from moec.common.work import GroupedWork
from moec.exploring.expert_use import ExpertUse, uses_of
from moec.exploring.kernel_runs import MachineLimits, Run, predicted_run
from moec.exploring.subject import Subject
from moec.ir.blocks import elements_of
from moec.ir.weights.format import WeightFormat
from moec.placing.volume import COUNT_BYTES, RowBytes
from moec.predicting.beside import beside
from moec.predicting.layers import Experts
from moec.predicting.workload import DenseTimes, RoutedLayer, Workload
from moec.targets.kind import ProgramKind

_VALUES = ("float16", "bfloat16", FLOAT32)
_PRIOR = 0.5
"""Tokens that each expert is assumed to have seen in addition to those of a profile."""


@dataclasses.dataclass(frozen=True)
class ModelOnRanks:
    """The workload of an artifact, on ranks that are such a ``machine`` each. ``routing``: where the popularity of
    experts is from; ``left_out``: blocks that are not predicted, with reasons; ``unknown``: kernels that are not."""

    workload: Workload
    machine: MachineLimits
    has_device: bool
    routing: str
    left_out: tuple[str, ...]
    unknown: tuple[str, ...]


def model_on_ranks(subject: Subject, tokens: int, machine: str | None = None) -> ModelOnRanks:
    """Read the workload of an artifact. ``tokens``: any number that it can run. ``machine``: as
    :func:`moec.exploring.kernel_runs.predicted_run` takes it.

    Raises MoecError for a design that is no program, for a model without layers of experts of known sizes, and for a
    profile of another model.
    """
    where = subject.artifact.where
    kind = targets.kind_of(subject.artifact.manifest.target)
    if not isinstance(kind, ProgramKind):
        raise MoecError(f"{where}: is for {kind.name}; expected an artifact for processors or GPUs, which ranks run")
    uses = uses_of(subject)
    if subject.profile is not None and uses.profile is None:
        raise MoecError(f"{subject.profile}: {uses.reason}; expected a profile of the model of {where}")
    layers, left_out = [], []
    for block, use in zip(subject.description["moe_blocks"], uses.layers, strict=True):
        try:
            layers.append(_layer(block, use))
        except MoecError as error:
            left_out.append(f"{block['name']}: {error}")
    if not layers:
        raise MoecError(
            f"{where}: has no layer of experts that can be predicted{''.join(f'; {each}' for each in left_out)}"
        )
    run = predicted_run(subject, kind, tokens, machine)
    products = frozenset(block["name"] for block in subject.description["moe_blocks"] if not _is_on_every_rank(block))
    shared = _shared_of(subject, [layer.experts.name for layer in layers])

    @functools.cache
    def dense(count: int) -> DenseTimes:
        return _dense(run if count == tokens else predicted_run(subject, kind, count, machine), products, shared)

    source = "tokens" if any(layer.recorded is not None for layer in layers) else "popularity of experts"
    routing = "even" if uses.profile is None else f"{source} of {uses.profile['file']}"
    workload = Workload(tuple(layers), dense)
    return ModelOnRanks(workload, run.machine, kind.has_device, routing, tuple(left_out), run.unknown)


def _layer(block: Mapping[str, Any], use: ExpertUse | None) -> RoutedLayer:
    """Describe a block; ``use``: of its experts in a profile. Raises MoecError for one of unknown sizes."""
    width, value_bytes = row_bytes(block), DTYPES[_value_type(block)].itemsize
    experts, k, products = block["num_experts"], block["top_k"], _products(block)
    if not experts or not products or not all(each.inner and each.width for each in products):
        raise MoecError("its number of experts or the sizes of its matrices are not fixed")
    if use is not None and len(use.count) != experts:
        raise MoecError(f"the profile has {len(use.count)} experts for its {experts}; make the profile anew")
    routing = block["routing"] or {}
    popularity = np.ones(experts) if use is None else use.count + _PRIOR
    recorded = None if use is None else use.recorded
    groups = routing.get("groups", 1)
    kept = routing.get("groups_kept", 1)
    return RoutedLayer(Experts(block["name"], products, width, value_bytes), k, popularity, groups, kept, recorded)


def row_bytes(block: Mapping[str, Any]) -> RowBytes:
    """Read the bytes of a row of a block. Raises MoecError for one of unknown sizes, and for one on every rank."""
    if _is_on_every_rank(block):
        raise MoecError("its experts are a graph over dispatched rows, which every rank computes for its own tokens")
    if block["row_bytes"] is None or not block["top_k"]:
        raise MoecError("its number of experts per token or the sizes and types of its rows are not fixed")
    return RowBytes(block["row_bytes"]["out"], block["row_bytes"]["back"], COUNT_BYTES)


def _is_on_every_rank(block: Mapping[str, Any]) -> bool:
    return block["op"] == "moec.Dispatch"


def _products(block: Mapping[str, Any]) -> tuple[GroupedWork, ...]:
    """Describe the products of each expert, the one that returns rows last."""
    return tuple(_product(block, name) for name in sorted(block["formats"], key=lambda name: name == "down"))


def _product(block: Mapping[str, Any], name: str) -> GroupedWork:
    """Describe one product; its matrices are [inner,width], and the mean of all experts where these differ in size."""
    elements, hidden = elements_of(block, name), block["hidden_size"] or 0
    mean = round(float(np.mean(elements)))
    other = mean // hidden if hidden else 0
    inner, width = (other, hidden) if name == "down" else (hidden, other)
    forms = list(dict.fromkeys(block["formats"][name]))
    bits = tuple(WeightFormat.parse(form).bits_per_weight(inner or 1) for form in forms)
    arithmetic = (block["experts"] or {}).get("arithmetic", FLOAT32)
    if arithmetic == FLOAT32:
        arithmetic = _value_type(block)
    return GroupedWork(inner, width, 1, arithmetic, bits, tuple(map(forms.index, block["formats"][name])))


def _value_type(block: Mapping[str, Any]) -> str:
    """The type of rows: that of the weights unless these are rounded to another."""
    return block["dtype"] if block["dtype"] in _VALUES else FLOAT32


def _dense(run: Run, products: frozenset[str], shared_nodes: list[frozenset[str]]) -> DenseTimes:
    """Add up the kernels of a run other than ``products`` of experts that ranks share; the ``shared_nodes`` of each
    layer apart."""
    dense, shared = 0.0, [0.0] * len(shared_nodes)
    for row in run.kernels:
        nodes = row.kernel["nodes"]
        if row.reads is not None and products & set(nodes):
            continue
        dense += row.seconds
        for place, own in enumerate(shared_nodes):
            part = row.seconds * sum(node in own for node in nodes) / max(1, len(nodes))
            shared[place] += part
            dense -= part
    return DenseTimes(max(dense, 0.0), tuple(shared))


def _shared_of(subject: Subject, layers: list[str]) -> list[frozenset[str]]:
    stages = subject.artifact.manifest.stages
    if not stages:
        return [frozenset()] * len(layers)
    model = subject.models[stages[-1]["file"]]
    return [beside(model, name) for name in layers]
