"""Experts that a router never chooses."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from moec.common.names import node_name
from moec.ir.dialect import RouteSpec
from moec.ir.scores import AT_MOST_ONE, ELEMENTWISE
from moec.ir.weights.stored import constant
from moec.passes.framework.base import Exactness, Report
from moec.passes.graph.minus_infinite import minus_infinite
from moec.passes.weights.expert_set import ExpertSet, expert_sets

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class DropDeadExperts:
    """Removes experts of ``moec.MoE``, and of ``moec.Route`` with ``moec.Experts``, that no token is ever given to.

    1. ``topk``: an expert whose selection score is below that of k others whatever the logits. Its ``correction_bias``
       is -inf, or it is so far below others that no score makes up for it (sigmoids and softmaxes lie between 0 and 1),
       or its logit is always -inf: an Add, a Gemm or a Where gives it a constant one.
    2. An expert whose logit is always -inf has the weight 0 with every score but ``identity``. So it goes also where
       the scores of others may be 0 as well, and where ``all`` are selected; not with ``correction_bias``, ``groups``
       or ``weight_on_input``, where it would count.
    3. With ``groups``, experts below k others in whatever groups are kept. The score of a group must not change, so
       they also have to be below one expert of their own group (two with ``sum_top2``). Each group loses equally many,
       as many as the group with the fewest.
    4. The softmax over all experts counts a dead expert, too, unless its logit is -inf. It stays, with a note, and so
       do those of the ``sparsemixer``, of ``expert_choice`` and where an expert has a ``capacity``.
    5. The columns of the router's matrix go with the experts (:mod:`moec.passes.graph.columns`), and metadata says
       which are gone (:mod:`moec.ir.origins`).

    Logits are assumed to be finite, except those that are always -inf. An infinity or a NaN among the others may make
    different scores equal, and send a token to a dead expert. Weight zero times anything counts as zero.

    ::

        (float[T,2] x, float[T,3] logits) => (float[T,2] y)
           <float[3] bias = {0, 0, -inf}, float[3,3,2] up, float[3,2,3] down> {
           masked = Add (logits, bias)
           y = moec.MoE <k = 1, activation = "relu", gate_layout = "none"> (x, masked, , up, down)
        }
            infer-shapes,drop-dead-experts ->
        (float[T,2] x, float[T,3] logits) => (float[T,2] y)
           <float[3] bias = {0, 0, -inf}, int64[2] masked_kept = {0, 1}, float[2,3,2] up_used, float[2,2,3] down_used> {
           masked = Add (logits, bias)
           masked_used = Gather <axis = -1> (masked, masked_kept)
           y = moec.MoE <activation = "relu", gate_layout = "none", k = 1> (x, masked_used, , up_used, down_used)
        }
    """

    name: ClassVar[str] = "drop-dead-experts"
    exactness: ClassVar[Exactness] = "exact"

    def apply(self, model: ir.Model, report: Report) -> bool:
        changed = False
        for experts in expert_sets(model.graph):
            dead = _never_used(experts)
            if not dead:
                continue
            summary = f"of {experts.routed} experts, no token needs {', '.join(map(str, dead))}"
            gone, reason = self._drop(model.graph, experts, dead)
            what = f"{summary}; {len(gone)} are gone{reason and f', for {reason}'}"
            report.note(self.name, node_name(experts.node), what)
            changed |= bool(gone)
        return changed

    def _drop(self, graph: ir.Graph, experts: ExpertSet, dead: dict[int, str]) -> tuple[dict[int, str], str]:
        """Remove the removable ones of the dead experts, given with reasons; return the removed ones, and why the
        others stay."""
        gone = {expert: why for expert, why in dead.items() if why != _COUNTED}
        stays = _COUNTED if len(gone) < len(dead) else "groups are equal"
        gone = _as_many_of_each_group(experts, gone)
        kept = [expert for expert in range(experts.routed) if expert not in gone]
        if gone and (reason := experts.feasible(kept)) is not None:
            return {}, reason
        if gone:
            experts.keep(graph, kept, {expert: f"{self.name}: {why}" for expert, why in gone.items()})
        return gone, stays if len(gone) < len(dead) else ""


_COUNTED = "the softmax over all experts counts them"
_LEAST_AND_MOST = {
    "softmax": (0, AT_MOST_ONE),
    **{name: (score.least, score.most) for name, score in ELEMENTWISE.items()},
}
"""Bounds of scores of finite logits; the lower one is the score of the logit -inf. Other scores are the logit
itself."""


def _never_used(experts: ExpertSet) -> dict[int, str]:
    """The experts that no token needs, with reasons."""
    spec, bias = experts.routing, experts.correction_bias
    if spec.selection == "expert_choice" or spec.score == "sparsemixer":
        return {}
    if bias is not None and constant(bias) is None:
        return {}
    absent = minus_infinite(experts.logits, experts.routed)
    dead = _never_chosen(experts, absent) if spec.selection == "topk" else np.zeros(experts.routed, bool)
    counts_nowhere = bias is None and spec.groups == 1 and not experts.weights.spec.weight_on_input
    if counts_nowhere and spec.score != "identity":
        dead |= absent
    return {int(expert): _why(spec, absent[expert]) for expert in np.flatnonzero(dead)}


def _why(spec: RouteSpec, absent: bool) -> str:
    if absent:
        return "its logit is -inf"
    return _COUNTED if spec.score == "softmax" else "its correction bias is too low"


def _never_chosen(experts: ExpertSet, absent: Array) -> Array:
    """Flags of the experts [E] that are never selected: k others have higher selection scores, whatever the logits.

    ``above[e, g]`` counts the experts of group g that score higher than e. The other groups that are kept are not
    known; those with the fewest such experts are assumed.
    """
    spec, E = experts.routing, experts.routed
    low, high = _selection_scores(experts, absent)
    above = (low > high[:, None]).reshape(E, spec.groups, -1).sum(axis=2)
    own = np.arange(E) // (E // spec.groups)
    in_own = above[np.arange(E), own]
    above[np.arange(E), own] = E  # behind all others when sorted
    elsewhere = np.sort(above, axis=1)[:, : spec.groups_kept - 1].sum(axis=1)
    needed = {"max": 1, "sum_top2": 2}[spec.group_score] if spec.groups > 1 else 0
    return (in_own + elsewhere >= spec.k) & (in_own >= needed)


def _selection_scores(experts: ExpertSet, absent: Array) -> tuple[Array, Array]:
    """The least and the largest selection score [E] of each expert, rounded like scores that a run computes."""
    compute = np.dtype(np.float64 if experts.logits.dtype == ir.DataType.DOUBLE else np.float32)
    most = np.finfo(compute).max / 2
    bias = constant(experts.correction_bias)
    biases = np.zeros(experts.routed, compute) if bias is None else bias.numpy().astype(compute)
    biases = np.where(np.isnan(biases), -np.inf, biases)  # a NaN is chosen like -inf
    bounds = _LEAST_AND_MOST.get(experts.routing.score)
    least, largest = bounds or (-most, most)
    with np.errstate(over="ignore"):
        low, high = (np.full(experts.routed, min(bound, most), compute) for bound in (least, largest))
        low[absent] = high[absent] = -np.inf if bounds is None else 0
        return low + biases, high + biases


def _as_many_of_each_group(experts: ExpertSet, dead: dict[int, str]) -> dict[int, str]:
    """Dead experts to remove: equally many of each group, as many as the group with the fewest has."""
    groups = experts.routing.groups
    size = experts.routed // groups
    by_group = [[expert for expert in dead if expert // size == group] for group in range(groups)]
    fewest = min(map(len, by_group))
    return {expert: dead[expert] for group in by_group for expert in group[:fewest]}
