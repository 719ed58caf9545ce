"""Measurements of one expert on the rows that it saw: in this process, or in a job of its own."""

from __future__ import annotations

import dataclasses
import functools
import os
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.common.errors import MoecError
from moec.common.mapped_files import release_pages
from moec.compiling import compiler
from moec.ir.dialect import ExpertsSpec
from moec.ir.expert_outputs import expert_output
from moec.ir.expert_weights import ExpertWeights, Part
from moec.ir.weights.format import WeightFormat
from moec.passes import pipeline
from moec.profiles.keys import key_of, measurable
from moec.profiles.measures import enough_outputs, evenly, packed
from moec.tools.profiling.formats import expert_errors
from moec.tools.profiling.stored_rows import StoredRows

Array = np.ndarray[Any, Any]

AT_ONCE = 2048
"""Rows that are multiplied at once."""


@dataclasses.dataclass(frozen=True)
class ExpertRows:
    """Rows for the measurements of one expert. ``places``, ``gates`` and ``shares`` [n]: its pairs, by places among the
    ``stored`` tokens; ``sampled`` and ``prior``: some rows [n,d] of its own and of any expert, with weights [n];
    ``moments``: whether to compute second moments."""

    expert: int
    stored: StoredRows
    places: Array
    gates: Array
    shares: Array
    sampled: tuple[Array, Array]
    prior: tuple[Array, Array]
    forms: tuple[WeightFormat, ...]
    moments: bool


@dataclasses.dataclass
class MeasuredExpert:
    """Measurements of one expert."""

    output_norm: float
    saliency: float
    hidden: Array
    moments: dict[str, Array]
    energy: float = 0.0
    errors: Array | None = None
    prior_errors: Array | None = None


@dataclasses.dataclass(frozen=True)
class ModelToMeasure:
    """A model by its path and the passes after which it is measured, for other processes. ``run`` is different in each
    run, so that no process takes the model for one that was there before."""

    path: str | os.PathLike[str]
    passes: str
    run: str


def measure_in_job(model: ModelToMeasure, key: str, seen: ExpertRows) -> MeasuredExpert:
    """Measure an expert of the layer with this key. Raises MoecError where the model has no such layer any more."""
    from threadpoolctl import threadpool_limits

    node = _layers(model).get(key)
    if node is None:
        raise MoecError(f"{model.path}: was changed while it was profiled; profile it again")
    with threadpool_limits(1, "blas"):
        return measure_expert(node, seen)


@functools.lru_cache(1)
def _layers(model: ModelToMeasure) -> dict[str, ir.Node]:
    graph = compiler.import_model(model.path, cache=False)
    pipeline.run(graph, pipeline.parse(model.passes))
    return {key_of(node): node for node in measurable(graph.graph)}


def measure_expert(node: ir.Node, seen: ExpertRows) -> MeasuredExpert:
    """Compute the measurements that need products."""
    weights = ExpertWeights(node)  # belongs to the calling thread alone, because it caches the last read
    own: dict[Part, Array] = {part: weights.decoded(part, seen.expert) for part in weights.parts}
    result = _summed(weights, seen, own)
    inputs = weighted(weights.spec, *seen.sampled)
    errors = expert_errors(weights, seen.expert, inputs, seen.prior, own, seen.forms)
    result.energy, result.errors, result.prior_errors = errors
    release_pages()
    return result


def weighted(spec: ExpertsSpec, rows: Array, gates: Array) -> tuple[Array, Array]:
    """Scale rows [n,d] as an expert reads them. Also returns the weights [n] of its results."""
    return (rows * gates[:, None], np.ones_like(gates)) if spec.weight_on_input else (rows, gates)


def _summed(weights: ExpertWeights, seen: ExpertRows, own: dict[Part, Array]) -> MeasuredExpert:
    x, places, gates = seen.stored.read(), seen.places, seen.gates
    result = MeasuredExpert(0.0, 0.0, np.zeros(weights.hidden), {})
    if seen.moments:
        result.moments["moment_in"] = packed(_moment_in(weights.spec, x, places, gates))
    hidden_moment = np.zeros((weights.hidden, weights.hidden), np.float32)
    some = evenly(np.arange(len(places)), enough_outputs(weights.hidden))
    for start in range(0, len(some), AT_ONCE):
        these = some[start : start + AT_ONCE]
        rows, sizes = weighted(weights.spec, x[places[these]], gates[these])[0], np.abs(gates[these])
        hidden, y = expert_output(weights, seen.expert, rows, own)
        norms = np.linalg.norm(y, axis=1)
        result.output_norm += norms.sum()
        result.saliency += seen.shares[these] @ norms
        result.hidden += sizes @ np.abs(hidden)
        if seen.moments:
            _add_moment(hidden_moment, hidden, sizes)
    stands_for = len(places) / max(1, len(some))
    result.output_norm *= stands_for
    result.saliency *= stands_for
    result.hidden *= stands_for
    if seen.moments:
        result.moments["moment_hidden"] = packed(hidden_moment) * np.float32(stands_for)
    return result


def _moment_in(spec: ExpertsSpec, x: Array, places: Array, gates: Array) -> Array:
    moment = np.zeros((x.shape[1], x.shape[1]), np.float32)
    for start in range(0, len(places), AT_ONCE):
        these = slice(start, start + AT_ONCE)
        rows, _ = weighted(spec, x[places[these]], gates[these])
        _add_moment(moment, rows, np.abs(gates[these]))
    return moment


def _add_moment(moment: Array, rows: Array, sizes: Array) -> None:
    """Add the sum of g x x^T over rows x [n,size] and sizes g of weights [n]. The rows are overwritten."""
    rows *= np.sqrt(sizes)[:, None]
    with np.errstate(all="ignore"):
        moment += rows.T @ rows
