"""Fewer expert calls: each token loses the experts that contribute least, by a profile."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from moec.common.errors import MoecError, UnsupportedError
from moec.common.names import node_name
from moec.ir.dialect import has_experts, is_moec
from moec.passes.framework.base import Exactness, Report
from moec.passes.weights.allocation import allocate
from moec.passes.weights.expert_set import ExpertSet
from moec.passes.weights.skipping import Method, Sample, SkipRule, check_measured, skip_rules_of, why_not
from moec.profiles import Profile

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class SkipExperts:
    """Keeps the share ``keep`` of all expert calls of the model; a call is one expert on one token.

    1. Applies to ``moec.MoE``, and to ``moec.Route`` with ``moec.Experts``, that select the k largest, more than
       ``lowest``. Other layers keep all their calls, which count for ``keep`` as those of every layer do.
    2. ``method=ratio`` gives routers a ``relative_threshold``: a token goes without the experts whose weight is small
       beside its largest. ``method=k`` gives them a lower k, and ``both`` to each layer what is better. A layer with a
       bias on the choice gets no lower k: a profile knows weights, not by what they were chosen.
    3. ``profile``, a file that ``moec profile`` makes, holds the weights of some tokens of each layer and the mean norm
       of each expert's outputs. Over all layers at once, thresholds (in steps of 1/64) and k are chosen so that the sum
       of the squared norms of what is dropped is the least that ``keep`` allows
       (:mod:`moec.passes.weights.allocation`).
    4. Every token keeps ``lowest`` experts with a lower k, and on average with a threshold.
    5. The remaining pairs keep their weights, unless the router has ``normalize``: the weights of softmax_topk no
       longer sum to 1. (On examples/char_lm that loses less than if they did: docs/specialisation.md.)

    A threshold drops what a token can spare::

        (float[T,8] x, float[T,5] logits) => (float[T,8] y) <float[5,16,8] up, float[5,8,16] down> {
           y = moec.MoE <activation = "relu", gate_layout = "none", k = 2, score = "softmax_topk">
                        (x, logits, , up, down)
        }
            skip-experts{keep=0.75,profile=PROFILE} ->
        (float[T,8] x, float[T,5] logits) => (float[T,8] y) <float[5,16,8] up, float[5,8,16] down> {
           y = moec.MoE <activation = "relu", gate_layout = "none", k = 2, relative_threshold = 0.59375,
                         score = "softmax_topk"> (x, logits, "", up, down)
        }

    and a lower k the same of each::

        (float[T,8] x, float[T,5] logits) => (float[T,8] y) <float[5,16,8] up, float[5,8,16] down> {
           y = moec.MoE <activation = "relu", gate_layout = "none", k = 2> (x, logits, , up, down)
        }
            skip-experts{keep=0.5,profile=PROFILE,method=k} ->
        (float[T,8] x, float[T,5] logits) => (float[T,8] y) <float[5,16,8] up, float[5,8,16] down> {
           y = moec.MoE <activation = "relu", gate_layout = "none", k = 1> (x, logits, "", up, down)
        }
    """

    name: ClassVar[str] = "skip-experts"
    exactness: ClassVar[Exactness] = "lossy"

    keep: float
    profile: str
    lowest: int = 1
    method: Method = "ratio"

    def apply(self, model: ir.Model, report: Report) -> bool:
        if not 0 < self.keep <= 1:
            raise MoecError(f"{self.name}: keep is {self.keep:g}; expected a share of the calls, above 0, up to 1")
        if self.lowest < 1:
            raise MoecError(f"{self.name}: lowest is {self.lowest}; expected 1 or more experts per token")
        with contextlib.closing(Profile.read(self.profile)) as profile:
            layers = [layer for node in model.graph if (layer := self._layer(node, profile, report)) is not None]
        if not any(layer.sample.calls for layer in layers):
            report.warn(self.name, "model", "nothing to skip: no layer of experts saw a token, or none was raised")
            return False
        if self.keep == 1:
            return False
        ways = [layer.ways[choice] for layer, choice in zip(layers, self._choices(layers), strict=True)]
        return any([self._apply(*chosen, report) for chosen in zip(layers, ways, strict=True)])

    def _layer(self, node: ir.Node, profile: Profile, report: Report) -> _SkippingLayer | None:
        """The ways to drop pairs of a node with experts; None for another node, and for one that a profile cannot
        measure."""
        if not has_experts(node):
            return None
        where = f"{profile.path}: node {node_name(node)}"
        try:
            measures, experts = profile.experts(node), ExpertSet(node)
            reason = why_not(experts, self.method, self.lowest)
        except UnsupportedError as error:
            report.note(self.name, node_name(node), f"keeps all calls, uncounted: {error}")
            return None
        sample = Sample.of(measures, where)
        if reason is not None:
            report.note(self.name, node_name(node), f"keeps all calls: {reason}")
            return _SkippingLayer(experts, sample, [SkipRule(experts.routing.k, 0.0, sample.calls, 0.0)])
        check_measured(experts, measures, where)
        method = "ratio" if experts.correction_bias is not None else self.method
        return _SkippingLayer(experts, sample, skip_rules_of(experts.routing, sample, method, self.lowest))

    def _choices(self, layers: Sequence[_SkippingLayer]) -> Array:
        """Number of the selected way of each layer."""
        unit = min(layer.sample.weight for layer in layers if layer.sample.weight > 0)
        most = max(len(layer.ways) for layer in layers)
        errors, costs = np.full((len(layers), most), np.inf), np.zeros((len(layers), most))
        for number, layer in enumerate(layers):
            weight, ways = layer.sample.weight, layer.ways
            errors[number, : len(ways)] = [way.error * weight for way in ways]
            # Allocate is exact for whole numbers. Layers with equal samples have them anyway.
            costs[number, : len(ways)] = [math.ceil(way.calls * weight / unit - 1e-6) for way in ways]
        total = float(costs[:, 0].sum())
        try:
            return allocate(errors, costs, self.keep * total)
        except ValueError as error:
            least = math.ceil(float(str(error)) / total * 1000) / 1000
            raise MoecError(
                f"{self.name}: keep={self.keep:g} cannot be met with method={self.method} and lowest={self.lowest}; "
                f"the least is {least:g}"
            ) from error

    def _apply(self, layer: _SkippingLayer, way: SkipRule, report: Report) -> bool:
        sample = layer.sample
        if way.calls == sample.calls:
            return False
        _change_routing(layer.experts.route, way)
        how = f"a relative threshold of {way.relative_threshold:g}" if way.relative_threshold else f"{way.k} per token"
        report.note(
            self.name,
            node_name(layer.experts.node),
            f"keeps {way.calls / sample.calls:.1%} of its calls, by {how}; what goes is "
            f"{math.sqrt(way.error / sample.energy) if sample.energy else 0:.2%} of its contributions",
        )
        return True


@dataclasses.dataclass(frozen=True)
class _SkippingLayer:
    """A layer of experts, its sampled tokens, and the ``ways`` to drop pairs; the first way drops none."""

    experts: ExpertSet
    sample: Sample
    ways: Sequence[SkipRule]


def _change_routing(route: ir.Node, way: SkipRule) -> None:
    """Give a router the attributes of a way, and the outputs [T,k] of a ``moec.Route`` their new size."""
    route.attributes["k"] = ir.AttrInt64("k", way.k)
    if way.relative_threshold > 0:
        route.attributes["relative_threshold"] = ir.AttrFloat32("relative_threshold", way.relative_threshold)
    if is_moec(route, "Route"):
        for output in route.outputs:
            if output.shape is not None:
                output.shape = ir.Shape([output.shape[0], way.k])
