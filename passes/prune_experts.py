"""Fewer experts: those that matter least on data go."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir

from moec.common.errors import MoecError
from moec.common.names import node_name
from moec.passes.framework.base import Exactness, Report
from moec.passes.weights.calibration import profile_reading
from moec.passes.weights.expert_set import ExpertSet
from moec.passes.weights.fewer_experts import (
    UNSEEN,
    PerLayer,
    Scored,
    best,
    check_keep,
    expert_set,
    frequency,
    global_counts,
    layers_of,
    saliency,
    uniform_counts,
)
from moec.profiles import Profile
from moec.profiles.keys import keep_key

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class PruneExperts:
    """Keeps ``keep`` of the experts of ``moec.MoE``, and of ``moec.Route`` with ``moec.Experts``.

    1. ``keep`` up to 1 is a share of the experts, above 1 the number that a layer keeps. With ``per_layer=uniform``
       every layer keeps that share or number of its own; with ``global`` they do on average, and the lowest scores of
       all layers go, each as a share of the mean of its layer.
    2. ``reap``: the score of an expert is the mean, over the tokens that came to it, of the length of its output times
       its weight as a share of all weights of the token (REAP, arXiv 2510.13999). ``frequency``: how many tokens came.
       Both are read from ``profile``, a file that ``moec profile`` makes. ``random``: any, by ``seed``. Those that no
       token came to go first.
    3. The router loses the columns of the experts that go, its biases, too. Tokens are routed among the others; k stays
       as it was. Of groups each loses as many. Layers stay as they are, with a warning, where experts have a capacity,
       choose tokens or share weights, and where the routing has other users.
    4. ``layers``, such as ``0-3+7``, are the numbers of the layers that lose experts. A profile made after the first
       were pruned (``moec profile --passes``) ranks the experts of the next better.
    5. Metadata records the removed experts with their scores (:mod:`moec.ir.origins`). Later passes find the remaining
       experts in the same profile.

    ::

        (float[T,8] x, float[T,4] logits) => (float[T,8] y) <float[4,6,8] up, float[4,8,6] down> {
           y = moec.MoE <activation = "relu", gate_layout = "none", k = 2> (x, logits, , up, down)
        }
            prune-experts{keep=3,profile=PROFILE} ->
        (float[T,8] x, float[T,4] logits) => (float[T,8] y)
           <int64[3] logits_kept = {0, 1, 2}, float[3,6,8] up_used, float[3,8,6] down_used> {
           logits_used = Gather <axis = -1> (logits, logits_kept)
           y = moec.MoE <activation = "relu", gate_layout = "none", k = 2> (x, logits_used, "", up_used, down_used)
        }
    """

    name: ClassVar[str] = "prune-experts"
    exactness: ClassVar[Exactness] = "lossy"

    keep: float
    method: Literal["reap", "frequency", "random"] = "reap"
    profile: str | None = None
    seed: int = 0
    per_layer: PerLayer = "uniform"
    layers: str | None = None

    def apply(self, model: ir.Model, report: Report) -> bool:
        self._check()
        nodes = layers_of(self.name, model.graph, self.layers, report)
        layers_found = [experts for node in nodes if (experts := expert_set(self.name, node, report)) is not None]
        with contextlib.ExitStack() as stack:
            profile = (
                None if self.profile is None else stack.enter_context(contextlib.closing(Profile.read(self.profile)))
            )
            random = np.random.default_rng(self.seed)
            layers = [Scored(experts, self._scores(experts, profile, random)) for experts in layers_found]
            counts = self._counts(layers)
            return any(
                [self._prune(model.graph, *scored, profile, report) for scored in zip(layers, counts, strict=True)]
            )

    def _check(self) -> None:
        check_keep(self.name, self.keep)
        if self.seed < 0:
            raise MoecError(f"{self.name}: seed is {self.seed}; expected 0 or more")
        if self.profile is None and self.method != "random":
            raise MoecError(
                f"{self.name}: method={self.method} needs to know what experts do; expected profile=FILE, which "
                "moec profile MODEL --data DATA -o FILE makes"
            )

    def _scores(self, experts: ExpertSet, profile: Profile | None, random: np.random.Generator) -> Array:
        if profile is None or self.method == "random":
            return random.random(experts.stored)
        measures = profile.experts(experts.node)
        with profile_reading(f"{profile.path}: node {node_name(experts.node)}"):
            return saliency(measures) if self.method == "reap" else frequency(measures)

    def _counts(self, layers: list[Scored]) -> list[int]:
        if self.per_layer == "global":
            return global_counts(self.name, layers, self.keep)
        return uniform_counts(self.name, [layer.experts for layer in layers], self.keep)

    def _prune(self, graph: ir.Graph, layer: Scored, count: int, profile: Profile | None, report: Report) -> bool:
        experts, scores = layer.experts, layer.scores
        if count == experts.stored:
            report.note(self.name, layer.name, f"keeps all {count} experts")
            return False
        kept = best(experts, scores, count)
        gone = [expert for expert in range(experts.stored) if expert not in kept]
        lost = self._lost(experts, gone, profile)
        keep_key(experts.node)
        experts.keep(graph, kept, {expert: f"{self.name}: {self._why(scores, expert)}" for expert in gone})
        report.note(
            self.name,
            layer.name,
            f"keeps {count} of {experts.stored} experts; without {', '.join(map(str, gone))}{lost}",
        )
        return True

    def _lost(self, experts: ExpertSet, gone: list[int], profile: Profile | None) -> str:
        if profile is None:
            return ""
        with profile_reading(f"{profile.path}: node {node_name(experts.node)}"):
            weights = np.abs(profile.experts(experts.node).array("gate_sum"))
        return f", which had {weights[gone].sum() / max(weights.sum(), 1e-300):.2%} of all weight"

    def _why(self, scores: Array, expert: int) -> str:
        if scores[expert] == UNSEEN:
            return "no token came to it"
        if self.method == "random":
            return f"random, seed {self.seed}"
        place = int((scores < scores[expert]).sum()) + 1
        return f"{self.method} {scores[expert]:.4g}, place {place} of {len(scores)} from below"
