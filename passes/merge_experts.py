"""Merge experts that are alike, so that a layer has fewer."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import ClassVar

import onnx_ir as ir

from moec.common.errors import MoecError, UnsupportedError
from moec.common.names import node_name
from moec.passes.framework.base import Exactness, Report
from moec.passes.weights.calibration import profile_reading
from moec.passes.weights.expert_set import ExpertSet
from moec.passes.weights.fewer_experts import check_keep, expert_set, layers_of, uniform_counts
from moec.passes.weights.grouping import Grouping, by_centroids
from moec.passes.weights.merging import Averages, unmergeable
from moec.profiles import Profile
from moec.profiles.keys import keep_key


@dataclasses.dataclass(frozen=True)
class MergeExperts:
    """Make ``keep`` averages of the experts of ``moec.MoE``, and of ``moec.Route`` with ``moec.Experts``.

    ``keep`` up to 1 is a share of the experts, above 1 the number that a layer has afterwards. ``profile`` is a file
    that ``moec profile`` makes; similarities are those on the tokens that it holds of the layer. The method is REAM
    (arXiv 2604.04356).

    1. The ``keep`` experts with the highest scores (those of prune-experts with ``reap``) are centroids. From the
       highest score down, each absorbs its nearest among the remaining experts, until they are ``most`` together. The
       similarity is the mean of two cosines: of outputs, and of logits (of routing weights, if logits are not a product
       of the layer's tokens).
    2. Hidden units are matched with those of the centroid; then weights and biases are averaged by score. The router
       loses the columns of the absorbed experts: their tokens are routed among the others.
    3. Averages are computed when they are read, one expert at a time. Quantised weights stay, with a warning: this pass
       comes before quantize-experts. Layers that cannot lose experts stay as in prune-experts; ``layers`` is as there.
    4. Metadata says which experts are one, and why (:mod:`moec.ir.origins`). A profile's measures of experts do not
       hold afterwards: later passes that use them need a profile of the model after this one (``moec profile
       --passes``). Those that use measures of the layer (rescale-experts, tune-router) do not.

    ::

        (float[T,8] x, float[T,4] logits) => (float[T,8] y) <float[4,6,8] up, float[4,8,6] down> {
           y = moec.MoE <activation = "relu", gate_layout = "none", k = 2> (x, logits, , up, down)
        }
            merge-experts{keep=3,profile=PROFILE} ->
        (float[T,8] x, float[T,4] logits) => (float[T,8] y)
           <int64[3] logits_kept = {0, 1, 2}, float[3,6,8] up_changed_used, float[3,8,6] down_changed_used> {
           logits_used = Gather <axis = -1> (logits, logits_kept)
           y = moec.MoE <activation = "relu", gate_layout = "none", k = 2>
                        (x, logits_used, , up_changed_used, down_changed_used)
        }
    """

    name: ClassVar[str] = "merge-experts"
    exactness: ClassVar[Exactness] = "lossy"

    keep: float
    profile: str
    most: int = 16
    layers: str | None = None

    def apply(self, model: ir.Model, report: Report) -> bool:
        check_keep(self.name, self.keep)
        if self.most < 2:
            raise MoecError(f"{self.name}: most is {self.most}; expected 2 experts or more that become one")
        nodes = layers_of(self.name, model.graph, self.layers, report)
        layers = [experts for node in nodes if (experts := self._experts(node, report)) is not None]
        with contextlib.closing(Profile.read(self.profile)) as profile:
            groupings = [self._grouping(experts, profile) for experts in layers]
        return any([self._merge(model.graph, *layer, report) for layer in zip(layers, groupings, strict=True)])

    def _experts(self, node: ir.Node, report: Report) -> ExpertSet | None:
        try:
            experts = expert_set(self.name, node, report)
            reason = None if experts is None else unmergeable(node)
        except UnsupportedError as error:
            experts, reason = None, str(error)
        if reason is None:
            return experts
        report.warn(self.name, node_name(node), f"keeps all experts: {reason}")
        return None

    def _grouping(self, experts: ExpertSet, profile: Profile) -> Grouping:
        """Group the experts of a layer that become one, with the weights of their averages."""
        (count,) = uniform_counts(self.name, [experts], self.keep)
        self._check_most(experts, count)
        if count == experts.stored:
            return Grouping([], {})
        measures = profile.experts(experts.node)
        with profile_reading(f"{profile.path}: node {node_name(experts.node)}"):
            return by_centroids(experts, measures, count, self.most)

    def _check_most(self, experts: ExpertSet, count: int) -> None:
        if count * self.most < experts.stored:
            raise MoecError(
                f"{self.name}: node {node_name(experts.node)}: cannot merge {experts.stored} experts to {count} "
                f"where at most {self.most} become one; the nearest possible is {-(-experts.stored // self.most)}"
            )

    def _merge(self, graph: ir.Graph, experts: ExpertSet, grouping: Grouping, report: Report) -> bool:
        name, count, into = node_name(experts.node), experts.stored, grouping.joined
        if not into:
            report.note(self.name, name, f"keeps all {count} experts")
            return False
        keep_key(experts.node)
        averages = Averages(graph, experts.node, grouping.groups)
        averages.store()
        changed = ExpertSet(experts.node)
        why = {expert: f"{self.name}: {reason}" for expert, reason in grouping.why.items()}
        changed.keep(graph, [expert for expert in range(changed.routed) if expert not in into], why, into)
        averages.store_as_before([expert for expert in range(count) if expert not in into])
        joined = ", ".join("+".join(map(str, sorted(group.experts))) for group in grouping.groups)
        report.note(self.name, name, f"makes {count - len(into)} of {count} experts: {joined}")
        return True
