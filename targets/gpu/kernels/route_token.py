"""The steps of routing for one token: a warp scores the experts of its token, and weighs those that were selected.

Lane l of the warp holds experts l, l + 32, ... in registers. Values that are looked up by expert or by slot are in
shared memory. Each warp has its own part of it, so no warp waits for another.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from tvm.script import tirx as T

from moec.ir.dialect import RouteSpec
from moec.ir.scores import LOGITS, Primitives, elementwise_scores
from moec.targets.gpu.kernels import activation
from moec.targets.gpu.kernels.instructions import reduce_lanes, sync_warp
from moec.targets.gpu.kernels.launch import SHARED_BYTES, WARP, blocks_for
from moec.targets.tvm.heavy.route import why_not_scored
from moec.targets.tvm.kernels.activation import at_least, total_to_divide_by
from moec.targets.tvm.kernels.kernel import why_not_stored

MOST_EXPERTS = 1024
"""The most experts, because a lane marks its taken experts in the 32 bits of a word."""
MINUS_INFINITY = float("-inf")
_MOST_WARPS = 4

_SCORES = elementwise_scores(Primitives(activation.sigmoid, activation.softplus, T.sqrt, lambda x: at_least(x, 0.0)))
_IMPLEMENTED = {*_SCORES, *LOGITS, "softmax", "sparsemixer"}


def why_not(spec: RouteSpec, experts: int, dtype: str) -> str | None:
    """The reason why a warp cannot compute such scores, for this number of experts or from logits of ``dtype``, or
    None."""
    if experts > MOST_EXPERTS:
        return f"{experts} experts; a warp holds the scores of at most {MOST_EXPERTS}"
    return why_not_scored(spec, _IMPLEMENTED) or why_not_stored(dtype)


def comparable(score: Any) -> Any:
    """The score, or -inf for a NaN."""
    return T.Select(T.isnan(score), T.float32(MINUS_INFINITY), score)


def per_lane(items: int) -> int:
    """The most items that a lane of a warp has, of ``items`` in all."""
    return -(-items // WARP)


@T.inline
def _softmax(count, lane, x):
    """Replace the first ``count`` items of the warp by their softmax; ``x[i]`` of a lane is item ``i * 32 + lane``."""
    largest = T.alloc_local((1,), "float32")
    total = T.alloc_local((1,), "float32")
    largest[0] = T.float32(MINUS_INFINITY)
    for i in T.unroll(per_lane(count)):
        if i * WARP + lane < count:
            largest[0] = T.max(largest[0], x[i])
    largest[0] = reduce_lanes(largest[0], "max")
    total[0] = T.float32(0)
    for i in T.unroll(per_lane(count)):
        if i * WARP + lane < count:
            x[i] = T.exp(x[i] - largest[0])
            total[0] = total[0] + x[i]
    total[0] = reduce_lanes(total[0], "sum")
    for i in T.unroll(per_lane(count)):
        x[i] = x[i] / total[0]


@dataclasses.dataclass(frozen=True)
class Token:
    """A token as its warp sees it. The last four fields are arrays in shared memory, with one row per warp of the
    block: ``scores`` by expert, ``group_scores`` by group, ``ids`` and ``mixing`` (weights) by slot."""

    spec: RouteSpec
    experts: int
    index: Any
    warp: Any
    lane: Any
    scores: Any
    group_scores: Any
    ids: Any
    mixing: Any

    @property
    def per_lane(self) -> int:
        return per_lane(self.experts)

    def expert(self, i: Any) -> Any:
        """The ``i``-th expert of this lane."""
        return i * WARP + self.lane


def warps_for(spec: RouteSpec, experts: int) -> int:
    """The number of warps of a block: as many as fit into shared memory, at most 4."""
    bytes_of_warp = (experts + spec.groups + 2 * spec.k) * 4
    return max(1, min(_MOST_WARPS, SHARED_BYTES // bytes_of_warp))


@T.inline
def start_token(spec, experts, tokens, body):
    """Launch a warp for each of ``tokens`` tokens, and emit ``body(token)``."""
    warps = T.meta_var(warps_for(spec, experts))
    block = T.cta_id([blocks_for(tokens, warps)])
    thread = T.thread_id([warps * WARP])
    scores = T.alloc_shared((warps, experts), "float32")
    group_scores = T.alloc_shared((warps, spec.groups), "float32")
    ids = T.alloc_shared((warps, spec.k), "int32")
    mixing = T.alloc_shared((warps, spec.k), "float32")
    warp: T.let = thread // WARP
    lane: T.let = thread % WARP
    token: T.let = block * warps + warp
    if token < tokens:
        body(Token(spec, experts, token, warp, lane, scores, group_scores, ids, mixing))


@T.inline
def read_logits(token, logits, x):
    """Read the logits of this lane's experts into ``x``; -inf beyond the last expert."""
    for i in T.unroll(token.per_lane):
        x[i] = T.float32(MINUS_INFINITY)
        if token.expert(i) < token.experts:
            x[i] = T.cast(logits[token.index, token.expert(i)], "float32")


@T.inline
def _score_experts(token, x):
    """Replace logits by scores."""
    if token.spec.score in _SCORES:
        for i in T.unroll(token.per_lane):
            x[i] = _SCORES[token.spec.score](x[i])
    if token.spec.score == "softmax":
        _softmax(token.experts, token.lane, x)


@T.inline
def share_with_warp(token, values):
    """Store a value for each expert in ``token.scores``, for all lanes of the warp."""
    for i in T.unroll(token.per_lane):
        if token.expert(i) < token.experts:
            token.scores[token.warp, token.expert(i)] = values[i]
    sync_warp()


@T.inline
def _score_group(token, size, group, first, second):
    """Set ``first`` to the score of a group of ``size`` experts: its largest score, or the sum of its two largest."""
    first[0] = T.float32(MINUS_INFINITY)
    second[0] = T.float32(MINUS_INFINITY)
    for member in T.serial(size):
        score: T.let = token.scores[token.warp, group * size + member]
        if token.spec.group_score == "max":
            # A NaN stays the score, since no comparison with it is true.
            if T.Or(T.isnan(score), score > first[0]):
                first[0] = score
        else:
            second[0] = T.max(second[0], T.min(first[0], comparable(score)))
            first[0] = T.max(first[0], comparable(score))
    if token.spec.group_score == "sum_top2" and size > 1:
        first[0] = first[0] + second[0]


@T.inline
def _keep_best_groups(token, choice):
    """Set the selection scores of experts outside the best groups to -inf. All selection scores have to be in
    ``token.scores``."""
    size = T.meta_var(token.experts // token.spec.groups)
    first = T.alloc_local((1,), "float32")
    second = T.alloc_local((1,), "float32")
    better = T.alloc_local((1,), "int32")
    for step in T.serial(per_lane(token.spec.groups)):
        if step * WARP + token.lane < token.spec.groups:
            _score_group(token, size, step * WARP + token.lane, first, second)
            token.group_scores[token.warp, step * WARP + token.lane] = comparable(first[0])
    sync_warp()
    for i in T.unroll(token.per_lane):
        if token.expert(i) < token.experts:
            group: T.let = token.expert(i) // size
            score: T.let = token.group_scores[token.warp, group]
            better[0] = 0
            for rival in T.serial(token.spec.groups):
                other: T.let = token.group_scores[token.warp, rival]
                if T.Or(other > score, T.And(other == score, rival < group)):
                    better[0] = better[0] + 1
            if better[0] >= token.spec.groups_kept:
                choice[i] = T.float32(MINUS_INFINITY)


@T.inline
def score_choices(token, logits, bias, x, choice):
    """Compute the scores of this lane's experts into ``x``, and their selection scores into ``choice``. The scores of
    all experts are then in ``token.scores``, too. ``bias`` [E]: may be None."""
    read_logits(token, logits, x)
    _score_experts(token, x)
    for i in T.unroll(token.per_lane):
        choice[i] = x[i]
        if bias is not None:  # at compile time; the next test is at run time  # noqa: SIM102
            if token.expert(i) < token.experts:
                choice[i] = x[i] + bias[token.expert(i)]
    if token.spec.groups > 1:
        share_with_warp(token, choice)
        _keep_best_groups(token, choice)
    share_with_warp(token, x)
    for i in T.unroll(token.per_lane):
        choice[i] = comparable(choice[i])


@T.inline
def _look_up_scores(token, share):
    """Look up the scores of the selected experts, slot by slot, into ``share``. An empty slot gets a score whose weight
    is zero."""
    nothing = T.meta_var(MINUS_INFINITY if token.spec.score == "softmax_topk" else 0.0)
    for i in T.unroll(per_lane(token.spec.k)):
        share[i] = T.float32(0)
        if i * WARP + token.lane < token.spec.k:
            expert: T.let = token.ids[token.warp, i * WARP + token.lane]
            if token.spec.selection == "expert_choice":
                share[i] = T.float32(nothing)
                if expert >= 0:
                    share[i] = token.scores[token.warp, expert]
            else:
                share[i] = token.scores[token.warp, expert]


@T.inline
def mix(token):
    """Set ``token.mixing`` to the scores of the selected experts. Scores named ``_topk`` are computed only now, from
    the selected logits."""
    share = T.alloc_local((per_lane(token.spec.k),), "float32")
    _look_up_scores(token, share)
    if token.spec.score == "softmax_topk":
        _softmax(token.spec.k, token.lane, share)
    if token.spec.score == "sigmoid_topk":
        for i in T.unroll(per_lane(token.spec.k)):
            share[i] = activation.sigmoid(share[i])
    for i in T.unroll(per_lane(token.spec.k)):
        if i * WARP + token.lane < token.spec.k:
            token.mixing[token.warp, i * WARP + token.lane] = share[i]


@T.inline
def _drop_at_threshold(token):
    spec = T.meta_var(token.spec)
    for step in T.serial(per_lane(spec.k)):
        slot: T.let = step * WARP + token.lane
        if slot < spec.k:
            if spec.threshold is not None:
                # Do not negate this comparison: a NaN has to be dropped.
                kept: T.let = token.mixing[token.warp, slot] > T.float32(spec.threshold)
                if T.Not(kept):
                    token.ids[token.warp, slot] = -1
                    token.mixing[token.warp, slot] = T.float32(0)
            if spec.selection == "expert_choice":  # at compile time; the next test is at run time  # noqa: SIM102
                if token.ids[token.warp, slot] < 0:
                    token.mixing[token.warp, slot] = T.float32(0)


@T.inline
def _drop_below_largest(token):
    spec = T.meta_var(token.spec)
    largest = T.alloc_local((1,), "float32")
    largest[0] = T.float32(0)
    for step in T.serial(per_lane(spec.k)):
        slot: T.let = step * WARP + token.lane
        if slot < spec.k:
            weight: T.let = token.mixing[token.warp, slot]
            largest[0] = T.max(largest[0], T.Select(T.isnan(weight), T.float32(0), T.abs(weight)))
    largest[0] = reduce_lanes(largest[0], "max")
    for step in T.serial(per_lane(spec.k)):
        slot: T.let = step * WARP + token.lane
        if slot < spec.k:
            below: T.let = T.abs(token.mixing[token.warp, slot]) < T.float32(spec.relative_threshold) * largest[0]
            if below:
                token.ids[token.warp, slot] = -1
                token.mixing[token.warp, slot] = T.float32(0)


@T.inline
def finish(token, weights, chosen):
    """Apply thresholds, normalisation and scale, and store the results."""
    spec = T.meta_var(token.spec)
    total = T.alloc_local((1,), "float32")
    total[0] = T.float32(0)
    if spec.threshold is not None or spec.selection == "expert_choice":
        _drop_at_threshold(token)
    if spec.relative_threshold > 0:
        _drop_below_largest(token)
    for step in T.serial(per_lane(spec.k)):
        slot: T.let = step * WARP + token.lane
        if slot < spec.k:
            total[0] = total[0] + token.mixing[token.warp, slot]
    if spec.normalize:
        total[0] = total_to_divide_by(spec, reduce_lanes(total[0], "sum"))
    for step in T.serial(per_lane(spec.k)):
        slot: T.let = step * WARP + token.lane
        if slot < spec.k:
            share: T.let = token.mixing[token.warp, slot] / (total[0] if spec.normalize else T.float32(1))
            expert: T.let = token.ids[token.warp, slot]
            chosen[token.index, slot] = expert
            weights[token.index, slot] = T.cast(
                T.Select(expert < 0, T.float32(0), share * T.float32(spec.scale)), weights.dtype
            )
