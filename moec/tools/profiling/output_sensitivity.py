"""Sensitivity of the model's output to errors of a layer.

The experts of one layer at a time are rounded, first gate and up, then down. The model runs with the resulting error
added to the layer's output. The sensitivity is the change of the model's output, as a Kullback-Leibler divergence in
nats per position, over the mean square of the layer's error of a token. For small errors the change is their square
times a factor that is the same for all formats (the second-order term of its expansion), so one format is enough.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.common.mapped_files import release_pages
from moec.common.names import node_name
from moec.ir import dialect, semantics
from moec.ir.dialect import RouteSpec, is_moec
from moec.ir.expert_outputs import expert_output
from moec.ir.expert_weights import ExpertWeights, Part
from moec.ir.interpreter import Watcher
from moec.ir.semantics import pairs_by_expert
from moec.ir.weights.format import WeightFormat
from moec.passes.weights.output_change import Batch, OutputChange
from moec.tools.profiling.formats import rounded
from moec.tools.profiling.threads import ParallelRun

Array = np.ndarray[Any, Any]

BITS = 3
"""Number of bits of the format that makes the errors; the nearest of the measured formats is taken. Errors then exceed
the noise of float32, and the model still works."""
FEWEST, MOST = 128, 2048
"""Bounds of the number of positions on which a layer's sensitivity is measured. Between them it is such that all runs
together cost about as much as running the model on the profile's data."""
MOST_WEIGHTS = 10**11
"""Bound of the model's weights times the necessary runs, up to which sensitivities are measured: minutes."""


def positions_wanted(tokens: int, layers: int) -> int:
    """Number of positions on which sensitivities are measured, for a number of layers of experts and ``tokens`` of a
    profile."""
    return min(MOST, max(FEWEST, tokens // max(1, 2 * layers)))


def too_large(model: ir.Model, layers: int) -> str:
    """Explain why the sensitivities of ``layers`` layers are not measured. Returns an empty text where they are."""
    weights = sum(
        value.const_value.size for value in model.graph.initializers.values() if value.const_value is not None
    )
    if 2 * layers * weights <= MOST_WEIGHTS:
        return ""
    return f"running {weights:.3g} weights {2 * layers} times, twice for every layer of experts, would take too long"


@dataclasses.dataclass(frozen=True)
class _Read:
    """Inputs of a layer of experts in one run: rows [T,d], weights [T,k] and ids [T,k]."""

    x: Array
    weights: Array
    ids: Array


def output_sensitivities(
    model: ir.Model,
    layers: Sequence[tuple[str, ir.Node]],
    batches: Sequence[Batch],
    output: str,
    forms: Sequence[WeightFormat],
    run: ParallelRun = map,
) -> dict[str, Array]:
    """Measure the sensitivities [P] of layers of experts to errors of each part, by the layers' keys. Gate and up share
    one. ``run`` is :func:`map`, or a version of it that uses threads. Raises as :class:`OutputChange`."""
    form = min(forms, key=lambda candidate: abs(candidate.elements.bits - BITS))
    read: dict[int, list[_Read]] = {id(node): [] for _, node in layers}

    def watch(_batch: int) -> Watcher:
        def keep(node: ir.Node, inputs: Sequence[Any], _outputs: Sequence[Any]) -> None:
            if id(node) in read:
                read[id(node)].append(_read(node, inputs))

        return keep

    change = OutputChange(model, batches, output, watch)
    targets = [(node, before) for _, node in layers for before in (True, False)]
    results = iter(run(lambda target: _sensitivity(change, target[0], target[1], read[id(target[0])], form), targets))
    sensitivities = {}
    for key, node in layers:
        count = len(ExpertWeights(node).before)
        before, down = next(results), next(results)
        sensitivities[key] = np.array([before] * count + [down])
    return sensitivities


def _read(node: ir.Node, inputs: Sequence[Any]) -> _Read:
    names = dict(zip(dialect.INPUTS[node.op_type], inputs, strict=False))
    x = np.ascontiguousarray(names["x"].reshape(-1, names["x"].shape[-1]), np.float32)
    if is_moec(node, "Experts"):
        return _Read(x, names["weights"].astype(np.float32), names["experts"])
    spec = dialect.spec_of(node, RouteSpec)
    weights, ids = semantics.route(spec, names["logits"], names.get("correction_bias"))
    return _Read(x, weights.astype(np.float32), ids)


def _sensitivity(
    change: OutputChange, node: ir.Node, before: bool, reads: Sequence[_Read], form: WeightFormat
) -> float:
    """Measure the sensitivity to rounding of gate and up if ``before``, else of down."""
    weights = ExpertWeights(node)  # belongs to the calling thread alone, because it caches the last read
    parts = weights.before if before else ("down",)
    errors = _errors(weights, parts, reads, form)
    square = sum(float(np.square(error, dtype=np.float64).sum()) for error in errors) / max(1, sum(map(len, errors)))
    if not np.isfinite(square):
        raise ValueError(f"node {node_name(node)}: its weights cannot be stored as {form}")
    return change.with_errors(node, errors) / square if square else 0.0


def _errors(weights: ExpertWeights, parts: Sequence[Part], reads: Sequence[_Read], form: WeightFormat) -> list[Array]:
    """Compute the error that rounding parts of all experts adds to the layer's output [T,width], for each run."""
    errors = [np.zeros((len(read.x), weights.width), np.float32) for read in reads]
    own = [_pairs(read, weights.experts) for read in reads]
    for expert in sorted({expert for pairs in own for expert in pairs}):
        matrices: dict[Part, Array] = {part: weights.decoded(part, expert) for part in weights.parts}
        changed = matrices | {part: rounded(matrices[part], form) for part in parts}
        for error, read, pairs in zip(errors, reads, own, strict=True):
            if expert in pairs:
                tokens, slots = pairs[expert]
                difference = _difference(
                    weights, expert, read.x[tokens], read.weights[tokens, slots], matrices, changed
                )
                np.add.at(error, tokens, difference)
        release_pages()
    return errors


def _pairs(read: _Read, experts: int) -> dict[int, tuple[Array, Array]]:
    """Find the tokens and slots of each expert. Experts with ids from ``experts`` on return their input and have no
    weights."""
    ids = np.where(read.ids < experts, read.ids, -1)
    return {expert: (tokens, slots) for expert, tokens, slots in pairs_by_expert(ids)}


def _difference(
    weights: ExpertWeights,
    expert: int,
    rows: Array,
    gates: Array,
    before: Mapping[Part, Array],
    after: Mapping[Part, Array],
) -> Array:
    """Subtract the results with the weights ``before`` from those ``after``, for rows [n,d] with routing weights
    ``gates`` [n]."""
    if weights.spec.weight_on_input:
        rows, gates = rows * gates[:, None], np.ones_like(gates)
    changed, expected = (expert_output(weights, expert, rows, parts)[1] for parts in (after, before))
    return gates[:, None] * (changed - expected)
