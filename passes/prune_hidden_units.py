"""Fewer hidden units: those that contribute least on data go, and the others make up for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from moec.common.errors import MoecError
from moec.common.names import node_name
from moec.ir import dialect
from moec.passes.framework.base import Exactness, Report
from moec.passes.weights.calibration import profile_reading
from moec.passes.weights.hidden_units import HiddenUnits, readable_units
from moec.passes.weights.loss import layer_of, output_error
from moec.passes.weights.store import change_numbers
from moec.profiles import Profile
from moec.profiles.keys import keep_key, keep_layer
from moec.profiles.measures import ExpertsMeasures

Array = np.ndarray[Any, Any]
_DAMPENING = 0.01
"""Added to the diagonal of a moment, as a share of its mean."""


@dataclasses.dataclass(frozen=True)
class PruneHiddenUnits:
    """Keeps the share ``keep`` of the hidden units of every expert of ``moec.Experts`` and ``moec.MoE``.

    1. Every expert of a layer keeps equally many units: ``keep`` of those that the layer has, rounded up to a multiple
       of ``multiple`` (groups of quantised weights, and tiles of kernels, should divide what is left). Of each expert
       those stay that contribute most to its output on the data of ``profile``, a file that ``moec profile`` makes: the
       mean square of the unit times the sum of squares of its weights in down. An expert that saw no token keeps those
       with the largest weights in down.
    2. With ``compensate``, the weights in down of the units that stay are changed such that, in the mean square over
       the data, they give what all gave (least squares by the second moment of the hidden units; as in OBC, arXiv
       2208.11580, for whole units at once).
    3. Left alone are layers whose products are in int8, or whose down has groups of units: this pass comes before
       quantize-experts. What the profile knows of experts does not hold afterwards: passes behind this one that use it
       need a profile of the model after it (``moec profile --passes``).
    4. The error of the outputs, on the rows of the profile, goes into the report.

    ::

        (float[T,8] x, float[T,3] logits) => (float[T,8] y) <float[3,32,8] up, float[3,8,32] down> {
           y = moec.MoE <activation = "relu", gate_layout = "none", k = 2> (x, logits, , up, down)
        }
            prune-hidden-units{keep=0.5,profile=PROFILE} ->
        (float[T,8] x, float[T,3] logits) => (float[T,8] y) <float[3,16,8] up_used, float[3,8,16] down_used_changed> {
           y = moec.MoE <activation = "relu", gate_layout = "none", k = 2> (x, logits, "", up_used, down_used_changed)
        }
    """

    name: ClassVar[str] = "prune-hidden-units"
    exactness: ClassVar[Exactness] = "lossy"

    keep: float
    profile: str
    multiple: int = 16
    compensate: bool = True

    def apply(self, model: ir.Model, report: Report) -> bool:
        if not 0 < self.keep <= 1:
            raise MoecError(f"{self.name}: keep is {self.keep:g}; expected a share of the units, above 0, up to 1")
        if self.multiple < 1:
            raise MoecError(f"{self.name}: multiple is {self.multiple}; expected 1 or more")
        nodes = [node for node in model.graph if dialect.has_experts(node)]
        if not nodes:
            report.warn(self.name, "model", "nothing to prune: no MoE block was raised before this pass")
        profile = Profile.read(self.profile)  # what down becomes reads it, when it is read itself
        return any([self._prune(model.graph, node, profile, report) for node in nodes])

    def _prune(self, graph: ir.Graph, node: ir.Node, profile: Profile, report: Report) -> bool:
        units = readable_units(node)
        if isinstance(units, str):
            report.warn(self.name, node_name(node), f"not pruned: {units}")
            return False
        width = min(units.count, -(-int(np.ceil(self.keep * units.count)) // self.multiple) * self.multiple)
        if width == units.count:
            report.note(self.name, node_name(node), f"nothing to prune: {width} units are kept of {units.count}")
            return False
        measures, before = profile.experts(node), layer_of(node)
        keep_key(node)
        with profile_reading(f"{profile.path}: node {node_name(node)}"):
            kept = [_kept(units, measures, expert, width) for expert in range(units.weights.experts)]
            changed = _compensation(units, measures, kept)
            units.keep(graph, kept, width)
            if self.compensate:
                change_numbers(node, "down", lambda numbers, expert: changed(expert).astype(numbers.dtype))
            error = output_error(before, layer_of(node), lambda expert: _rows(measures, expert))
        keep_layer(node)
        report.note(
            self.name,
            node_name(node),
            f"keeps {width} of {units.count} hidden units; its output changes by {error:.2%}",
        )
        return True


def _kept(units: HiddenUnits, measures: ExpertsMeasures, expert: int, width: int) -> Array:
    """The numbers of the units that an expert keeps, ascending."""
    own = units.weights.sizes[expert]
    score = np.square(units.numbers("down", expert)[:own], dtype=np.float64).sum(axis=1)
    if measures.measured[expert]:
        score *= np.diag(measures.moment_hidden(expert))[:own]
    return np.sort(np.argsort(-score, kind="stable")[:width])


def _compensation(units: HiddenUnits, measures: ExpertsMeasures, kept: Sequence[Array]) -> Callable[[int], Array]:
    """Function that computes an expert's compensated down matrix for the units that it keeps, in the layout of its
    operand."""
    weights, transposed, width = units.weights, units.weights.transposed("down"), max(map(len, kept))
    operand = weights.operand("down")

    def changed(expert: int) -> Array:
        down, own = operand.decoded(expert, transposed).astype(np.float64), kept[expert]
        gone = np.setdiff1d(np.arange(weights.sizes[expert]), own)
        result = np.zeros((width, down.shape[1]))
        result[: len(own)] = down[own]
        if measures.measured[expert] and len(gone):
            moment = measures.moment_hidden(expert).astype(np.float64)
            inner = moment[np.ix_(own, own)]
            inner[np.diag_indices(len(own))] += _DAMPENING * max(float(np.mean(np.diag(inner))), 1e-12)
            result[: len(own)] += np.linalg.solve(inner, moment[np.ix_(own, gone)] @ down[gone])
        return result if transposed else result.T

    return changed


def _rows(measures: ExpertsMeasures, expert: int) -> Array | None:
    rows = measures.rows(expert)
    return rows if len(rows) else None
