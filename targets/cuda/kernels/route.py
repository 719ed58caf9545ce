"""Route: one warp per token scores the experts, selects k of them and weighs them, in one pass over the logits.

Lane l of the warp holds the scores of the experts l, l + 32, ... in registers. A round of the selection finds the
largest one left: every lane among its own, then all lanes in five exchanges. Equal scores go to the lower id, and NaN
counts as -inf when choosing, as :mod:`moec.ir.semantics` says. What is looked up by expert or by slot is in shared
memory; each warp has its own part of it, so no warp waits for another.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from moec.ir.dialect import RouteSpec
from moec.targets.cuda.kernels import activation
from moec.targets.cuda.kernels.launch import ALL_LANES, ATTRIBUTES, STORAGE_TYPES, WARP, blocks_for
from moec.targets.tvm.activation import at_least

MOST_EXPERTS = 512
WARPS = 4
"""Warps of a block."""
MINUS_INFINITY = float("-inf")
_NOBODY = 2**31 - 1
"""An expert id that loses every tie."""

_SCORES = {
    "sigmoid": activation.sigmoid,
    "softplus": activation.softplus,
    "sqrt_softplus": lambda x: T.sqrt(activation.softplus(x)),
    "relu": lambda x: at_least(x, 0.0),
}
"""Elementwise scores; with the others the logits themselves are the scores, or a softmax follows."""


def why_not(spec: RouteSpec, experts: int, dtype: str) -> str | None:
    """The reason why :func:`route` cannot do this routing, or None."""
    if spec.selection == "expert_choice":
        return "expert_choice lets experts choose among all tokens; this kernel looks at one token at a time"
    if experts > MOST_EXPERTS:
        return f"{experts} experts; a warp holds the scores of at most {MOST_EXPERTS}"
    if dtype not in STORAGE_TYPES:
        return f"element type {dtype}; the kernel takes {', '.join(STORAGE_TYPES)}"
    return None


def _comparable(score: Any) -> Any:
    """-inf for a NaN."""
    return T.Select(T.isnan(score), T.float32(MINUS_INFINITY), score)


def _per_lane(items: int) -> int:
    """How many of the items a lane has at most."""
    return -(-items // WARP)


@T.inline
def _softmax(count, lane, x):
    """Over the first ``count`` items of the warp; ``x[i]`` of a lane is item ``i * 32 + lane``."""
    largest = T.alloc_local((1,), "float32")
    total = T.alloc_local((1,), "float32")
    largest[0] = T.float32(MINUS_INFINITY)
    for i in T.unroll(_per_lane(count)):
        if i * WARP + lane < count:
            largest[0] = T.max(largest[0], x[i])
    largest[0] = T.cuda.warp_reduce(largest[0], "max")
    total[0] = T.float32(0)
    for i in T.unroll(_per_lane(count)):
        if i * WARP + lane < count:
            x[i] = T.exp(x[i] - largest[0])
            total[0] = total[0] + x[i]
    total[0] = T.cuda.warp_reduce(total[0], "sum")
    for i in T.unroll(_per_lane(count)):
        x[i] = x[i] / total[0]


@dataclasses.dataclass(frozen=True)
class _Token:
    """What a warp knows of its token. The last four are in shared memory, one row per warp of the block."""

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
        return _per_lane(self.experts)

    def expert(self, i: Any) -> Any:
        """The ``i``-th expert of this lane."""
        return i * WARP + self.lane


@T.inline
def _read(token, logits, x):
    for i in T.unroll(token.per_lane):
        x[i] = T.float32(MINUS_INFINITY)
        if token.expert(i) < token.experts:
            x[i] = T.cast(logits[token.index, token.expert(i)], "float32")


@T.inline
def _score(token, x):
    """Turn logits into scores and share them with the warp."""
    if token.spec.score in _SCORES:
        for i in T.unroll(token.per_lane):
            x[i] = _SCORES[token.spec.score](x[i])
    if token.spec.score == "softmax":
        _softmax(token.experts, token.lane, x)


@T.inline
def _share(token, values):
    """Put a value of each expert into shared memory."""
    for i in T.unroll(token.per_lane):
        if token.expert(i) < token.experts:
            token.scores[token.warp, token.expert(i)] = values[i]
    T.cuda.warp_sync()


@T.inline
def _score_group(token, size, group, first, second):
    """``first`` becomes the score of the group."""
    first[0] = T.float32(MINUS_INFINITY)
    second[0] = T.float32(MINUS_INFINITY)
    for member in T.serial(size):
        score: T.let = token.scores[token.warp, group * size + member]
        if token.spec.group_score == "max":
            # A NaN, once met, stays: nothing is larger.
            if T.Or(T.isnan(score), score > first[0]):
                first[0] = score
        else:
            second[0] = T.max(second[0], T.min(first[0], _comparable(score)))
            first[0] = T.max(first[0], _comparable(score))
    if token.spec.group_score == "sum_top2" and size > 1:
        first[0] = first[0] + second[0]


@T.inline
def _keep_best_groups(token, choice):
    """Experts outside the best groups get -inf; their choices are in shared memory too."""
    size = T.meta_var(token.experts // token.spec.groups)
    first = T.alloc_local((1,), "float32")
    second = T.alloc_local((1,), "float32")
    better = T.alloc_local((1,), "int32")
    for step in T.serial(_per_lane(token.spec.groups)):
        if step * WARP + token.lane < token.spec.groups:
            _score_group(token, size, step * WARP + token.lane, first, second)
            token.group_scores[token.warp, step * WARP + token.lane] = _comparable(first[0])
    T.cuda.warp_sync()
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
def _find_largest(token, choice, taken, best, expert):
    """``best`` and ``expert`` of every lane: the largest choice of the warp that is not taken, and whose it is."""
    best[0] = T.float32(MINUS_INFINITY)
    expert[0] = _NOBODY
    for i in T.unroll(token.per_lane):
        left: T.let = T.And(token.expert(i) < token.experts, (taken[0] & T.uint32(1 << i)) == T.uint32(0))
        if T.And(left, T.Or(expert[0] == _NOBODY, choice[i] > best[0])):
            best[0] = choice[i]
            expert[0] = token.expert(i)
    for step in T.unroll(5):
        other_best: T.let = T.cuda.__shfl_xor_sync(T.uint32(ALL_LANES), best[0], 16 >> step, WARP)
        other_expert: T.let = T.cuda.__shfl_xor_sync(T.uint32(ALL_LANES), expert[0], 16 >> step, WARP)
        if T.Or(other_best > best[0], T.And(other_best == best[0], other_expert < expert[0])):
            best[0] = other_best
            expert[0] = other_expert


@T.inline
def _select_largest(token, choice):
    """The k largest choices, from large to small."""
    taken = T.alloc_local((1,), "uint32")
    best = T.alloc_local((1,), "float32")
    expert = T.alloc_local((1,), "int32")
    taken[0] = T.uint32(0)
    for slot in T.serial(token.spec.k):
        _find_largest(token, choice, taken, best, expert)
        for i in T.unroll(token.per_lane):
            if token.expert(i) == expert[0]:
                taken[0] = taken[0] | T.uint32(1 << i)
        if token.lane == 0:
            token.ids[token.warp, slot] = expert[0]


@T.inline
def _select_all(token):
    for step in T.serial(_per_lane(token.spec.k)):
        if step * WARP + token.lane < token.spec.k:
            token.ids[token.warp, step * WARP + token.lane] = step * WARP + token.lane


@T.inline
def _mix(token):
    """The scores of the selected experts; with ``softmax_topk`` the softmax over them."""
    share = T.alloc_local((_per_lane(token.spec.k),), "float32")
    for i in T.unroll(_per_lane(token.spec.k)):
        share[i] = T.float32(0)
        if i * WARP + token.lane < token.spec.k:
            share[i] = token.scores[token.warp, token.ids[token.warp, i * WARP + token.lane]]
    if token.spec.score == "softmax_topk":
        _softmax(token.spec.k, token.lane, share)
    for i in T.unroll(_per_lane(token.spec.k)):
        if i * WARP + token.lane < token.spec.k:
            token.mixing[token.warp, i * WARP + token.lane] = share[i]


@T.inline
def _mix_sparsely(token, logit, choice):
    """Rounds of the sparse mixer. In shared memory are the logits that are left, -inf for those taken."""
    taken = T.alloc_local((1,), "uint32")
    best = T.alloc_local((1,), "float32")
    expert = T.alloc_local((1,), "int32")
    total = T.alloc_local((1,), "float32")
    taken[0] = T.uint32(0)  # and stays so: what was taken may be the largest again, as -inf
    for slot in T.serial(token.spec.k):
        for i in T.unroll(token.per_lane):
            if token.expert(i) < token.experts:
                choice[i] = _comparable(token.scores[token.warp, token.expert(i)])
        _find_largest(token, choice, taken, best, expert)
        top: T.let = token.scores[token.warp, expert[0]]
        total[0] = T.float32(0)
        for i in T.unroll(token.per_lane):
            if token.expert(i) < token.experts:
                distance: T.let = (top - logit[i]) / T.max(T.abs(logit[i]), top)
                share: T.let = T.exp(token.scores[token.warp, token.expert(i)] - top)
                # The comparison stays as it is, not negated: a distance of 0 / 0 counts as near.
                total[0] = total[0] + T.Select(distance > T.float32(2 * token.spec.jitter), T.float32(0), share)
        total[0] = T.cuda.warp_reduce(total[0], "sum")
        T.cuda.warp_sync()
        if token.lane == 0:
            token.ids[token.warp, slot] = expert[0]
            token.mixing[token.warp, slot] = T.float32(1) / total[0]
            token.scores[token.warp, expert[0]] = T.float32(MINUS_INFINITY)
        T.cuda.warp_sync()


@T.inline
def _finish(token, weights, chosen):
    """Threshold, normalisation and scale, and the results."""
    spec = T.meta_var(token.spec)
    total = T.alloc_local((1,), "float32")
    total[0] = T.float32(0)
    for step in T.serial(_per_lane(spec.k)):
        slot: T.let = step * WARP + token.lane
        if slot < spec.k:
            if spec.threshold is not None:
                # Not its negation, so that a NaN is dropped.
                kept: T.let = token.mixing[token.warp, slot] > T.float32(spec.threshold)
                if T.Not(kept):
                    token.ids[token.warp, slot] = -1
                    token.mixing[token.warp, slot] = T.float32(0)
            total[0] = total[0] + token.mixing[token.warp, slot]
    if spec.normalize:
        total[0] = T.cuda.warp_reduce(total[0], "sum") + T.float32(spec.normalize_epsilon)
    for step in T.serial(_per_lane(spec.k)):
        slot: T.let = step * WARP + token.lane
        if slot < spec.k:
            share: T.let = token.mixing[token.warp, slot] / (total[0] if spec.normalize else T.float32(1))
            expert: T.let = token.ids[token.warp, slot]
            chosen[token.index, slot] = expert
            weights[token.index, slot] = T.cast(
                T.Select(expert < 0, T.float32(0), share * T.float32(spec.scale)), weights.dtype
            )


@T.inline
def _route_token(token, logits, bias, weights, chosen):
    x = T.alloc_local((token.per_lane,), "float32")
    choice = T.alloc_local((token.per_lane,), "float32")
    _read(token, logits, x)
    if token.spec.score == "sparsemixer":
        _share(token, x)
        _mix_sparsely(token, x, choice)
    else:
        _score(token, x)
        for i in T.unroll(token.per_lane):
            choice[i] = x[i]
            if bias is not None:  # decided here, the one below when the kernel runs  # noqa: SIM102
                if token.expert(i) < token.experts:
                    choice[i] = x[i] + T.cast(bias[token.expert(i)], "float32")
        if token.spec.groups > 1:
            _share(token, choice)
            _keep_best_groups(token, choice)
        _share(token, x)
        if token.spec.selection == "all":
            _select_all(token)
        else:
            for i in T.unroll(token.per_lane):
                choice[i] = _comparable(choice[i])
            _select_largest(token, choice)
        T.cuda.warp_sync()
        _mix(token)
    _finish(token, weights, chosen)


@T.inline
def _route(spec, experts, tokens, logits, bias, weights, chosen):
    block = T.cta_id([blocks_for(tokens, WARPS)])
    thread = T.thread_id([WARPS * WARP])
    scores = T.alloc_shared((WARPS, experts), "float32")
    group_scores = T.alloc_shared((WARPS, spec.groups), "float32")
    ids = T.alloc_shared((WARPS, spec.k), "int32")
    mixing = T.alloc_shared((WARPS, spec.k), "float32")
    warp: T.let = thread // WARP
    lane: T.let = thread % WARP
    token: T.let = block * WARPS + warp
    if token < tokens:
        own = T.meta_var(_Token(spec, experts, token, warp, lane, scores, group_scores, ids, mixing))
        _route_token(own, logits, bias, weights, chosen)


def route(spec: RouteSpec, experts: int, dtype: str = "float32", *, biased: bool = False) -> tirx.PrimFunc:
    """``(logits[T, E], correction_bias[E] if biased, weights[T, k], experts[T, k])``; capacity is left to
    :mod:`.capacity`. Logits, bias and weights have ``dtype``, experts are int32; T is dynamic and may be 0."""
    if biased:

        @T.prim_func
        def biased_kernel(
            logits_handle: T.handle, bias_handle: T.handle, weights_handle: T.handle, experts_handle: T.handle
        ):
            T.func_attr(ATTRIBUTES)
            tokens = T.int32()
            logits = T.match_buffer(logits_handle, (tokens, experts), dtype)
            bias = T.match_buffer(bias_handle, (experts,), dtype)
            weights = T.match_buffer(weights_handle, (tokens, spec.k), dtype)
            chosen = T.match_buffer(experts_handle, (tokens, spec.k), "int32")
            T.device_entry()
            _route(spec, experts, tokens, logits, bias, weights, chosen)

        return biased_kernel

    @T.prim_func
    def kernel(logits_handle: T.handle, weights_handle: T.handle, experts_handle: T.handle):
        T.func_attr(ATTRIBUTES)
        tokens = T.int32()
        logits = T.match_buffer(logits_handle, (tokens, experts), dtype)
        weights = T.match_buffer(weights_handle, (tokens, spec.k), dtype)
        chosen = T.match_buffer(experts_handle, (tokens, spec.k), "int32")
        T.device_entry()
        _route(spec, experts, tokens, logits, None, weights, chosen)

    return kernel
