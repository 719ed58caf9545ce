"""Hidden units of experts that never contribute anything."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from moec.common.mapped_files import release_pages
from moec.common.names import node_name
from moec.ir import dialect
from moec.ir.semantics import activated
from moec.passes.framework.base import Exactness, Report
from moec.passes.weights.hidden_units import Array, HiddenUnits, readable_units


@dataclasses.dataclass(frozen=True)
class DropZeroNeurons:
    """Removes hidden units of ``moec.Experts`` and ``moec.MoE`` that contribute zero whatever the input, expert by
    expert.

    1. A unit whose weights in ``down`` are zero.
    2. Not gated: a unit whose weights in ``up`` are zero, if its activation then is: act(bias) = 0. All activations but
       the sigmoid are 0 without a bias, relu and relu2 also with a negative one.
    3. Gated: a unit of which one factor is zero: its weights in the gate are, and act(gate bias) = 0, or its weights in
       up are, and up bias + ``up_offset`` = 0; biases clamped by ``limit``.
    4. The remaining units come first, in their order, and the stacks are cut to the largest number of them (at least
       1). ``hidden_sizes`` holds the number of each expert, if these differ. Units beyond the ``hidden_sizes`` that a
       node already has are removed, too.
    5. Weights keep their formats (:mod:`moec.ir.weights.stored`). Nodes whose ``down`` has groups of some of the units,
       or whose activations are quantised, stay as they are, with a note: the other units would be rounded differently.
       This pass belongs before quantisation.

    Zero times anything counts as zero, also times a hidden value that overflows, or that an infinity or a NaN in the
    input makes infinite or NaN; such a value no longer turns the output into NaN by itself. A NaN in the input does
    reach every output of an expert that has a unit left, for it makes all hidden values NaN. Units with an infinite or
    NaN weight or bias stay.

    ::

        (float[T,2] x, float[T,2] logits) => (float[T,2] y)
           <float[2,3,2] up, float[2,2,3] down = {1, 0, 2, 3, 0, 4, 5, 6, 7, 8, 9, 1}> {
           y = moec.MoE <k = 1, activation = "relu", gate_layout = "none"> (x, logits, , up, down)
        }
            ->
        (float[T,2] x, float[T,2] logits) => (float[T,2] y) <float[2,3,2] up_used, float[2,2,3] down_used> {
           y = moec.MoE <activation = "relu", gate_layout = "none", hidden_sizes = [2, 3], k = 1>
              (x, logits, , up_used, down_used)
        }
    """

    name: ClassVar[str] = "drop-zero-neurons"
    exactness: ClassVar[Exactness] = "exact"

    def apply(self, model: ir.Model, report: Report) -> bool:
        changed = False
        left_alone: dict[str, list[ir.Node]] = {}
        for node in list(model.graph):
            if not dialect.has_experts(node):
                continue
            units = readable_units(node)
            if isinstance(units, str):
                left_alone.setdefault(units, []).append(node)
                continue
            dropped = _drop(model.graph, units)
            if dropped is not None:
                report.note(self.name, node_name(node), dropped)
                changed = True
        for reason, nodes in left_alone.items():
            others = f" and {len(nodes) - 1} more" if len(nodes) > 1 else ""
            report.note(self.name, f"{node_name(nodes[0])}{others}", f"not looked at: {reason}")
        return changed


def _drop(graph: ir.Graph, units: HiddenUnits) -> str | None:
    """Drop units that contribute nothing; return a description of the change, or None."""
    kept = []
    for expert in range(units.weights.experts):
        kept.append(_contributing(units, expert))
        release_pages()
    counts, before = [len(neurons) for neurons in kept], sum(units.weights.sizes)
    width = max(1, *counts)
    if sum(counts) == before and width == units.count:
        return None
    units.keep(graph, kept, width)
    sizes = f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else str(width)
    dropped = before - sum(counts)
    return f"{dropped} of {before} hidden units contribute nothing and are gone; of {units.count}, experts keep {sizes}"


def _contributing(units: HiddenUnits, expert: int) -> Array:
    """The numbers of the hidden units that may contribute, ascending."""
    silent = units.zeros("down", expert) | _zero_hidden_values(units, expert)
    candidates = np.flatnonzero(silent)
    silent[candidates] = _finite(units, expert, candidates)
    silent[units.weights.sizes[expert] :] = True
    return np.flatnonzero(~silent)


def _zero_hidden_values(units: HiddenUnits, expert: int) -> Array:
    """Flags of the hidden values that are zero whatever the input; decided in float64."""
    spec, up = units.weights.spec, units.bias("up", expert)
    if not spec.gated:
        return units.zeros("up", expert) & (activated(spec, None, up) == 0)
    gate = units.bias("gate", expert)
    if spec.limit > 0:
        gate, up = np.minimum(gate, spec.limit), np.clip(up, -spec.limit, spec.limit)
    gate_is_zero = units.zeros("gate", expert) & (activated(spec, None, gate) == 0)
    return gate_is_zero | (units.zeros("up", expert) & (up + spec.up_offset == 0))


def _finite(units: HiddenUnits, expert: int, candidates: Array) -> Array:
    """Flags of the candidates whose weights and biases are all finite."""
    finite = np.ones(len(candidates), bool)
    for part in units.weights.parts if len(candidates) else ():
        finite &= np.isfinite(units.numbers(part, expert)[candidates]).all(axis=1)
        if part != "down":
            finite &= np.isfinite(units.bias(part, expert)[candidates])
    return finite
