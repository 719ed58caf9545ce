"""Route: one pass over the logits of each token gives its experts and their weights.

Scores, selection and weights of a token stay on the stack of the thread that has the token. Selection is an insertion
into the k best so far; since an equal score never moves ahead of an earlier one, ties go to the lower id. NaN counts as
-inf when choosing, as :mod:`moec.ir.semantics` says.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from moec.ir.dialect import RouteSpec
from moec.ir.scores import LOGITS, Primitives, elementwise_scores
from moec.targets.cpu.kernels import activation
from moec.targets.cpu.kernels.elementary import exponential
from moec.targets.cpu.kernels.emit import parallel_rows
from moec.targets.tvm.heavy.route import RouteProblem, why_not_scored
from moec.targets.tvm.kernels.activation import at_least, total_to_divide_by
from moec.targets.tvm.kernels.kernel import Kernel, in_storage, why_not_stored

MINUS_INFINITY = float("-inf")
_LOGIT_WORK = 16
"""Elements of a copy that take as long as one logit."""

_SCORES = {
    **elementwise_scores(Primitives(activation.sigmoid, activation.softplus, T.sqrt, lambda x: at_least(x, 0.0))),
    **dict.fromkeys(LOGITS, lambda x: x),
}
_IMPLEMENTED = {*_SCORES, "softmax", "sparsemixer"}


def why_not(spec: RouteSpec) -> str | None:
    """The reason why :func:`route` cannot do this routing, or None."""
    if spec.selection == "expert_choice":
        return "expert_choice lets experts choose among all tokens; this kernel looks at one token at a time"
    return why_not_scored(spec, _IMPLEMENTED)


def _comparable(score: Any) -> Any:
    """-inf for a NaN."""
    return T.Select(T.isnan(score), T.float32(MINUS_INFINITY), score)


@T.inline
def _softmax(count, x):
    extreme = T.alloc_buffer((1,), "float32")
    total = T.alloc_buffer((1,), "float32")
    extreme[0] = x[0]
    for i in T.serial(count):
        extreme[0] = T.max(extreme[0], x[i])
    total[0] = T.float32(0)
    for i in T.serial(count):
        x[i] = exponential(x[i] - extreme[0])
    for i in T.serial(count):
        total[0] = total[0] + x[i]
    for i in T.serial(count):
        x[i] = x[i] / total[0]


@T.inline
def _scores(spec, E, token, logits, scores):
    for e in T.serial(E):
        scores[e] = T.cast(logits[token, e], "float32")
        if spec.score in _SCORES:
            scores[e] = _SCORES[spec.score](scores[e])
    if spec.score == "softmax":
        _softmax(E, scores)


@T.inline
def _keep_best_groups(spec, E, choice):
    size = T.meta_var(E // spec.groups)
    first = T.alloc_buffer((spec.groups,), "float32")
    second = T.alloc_buffer((spec.groups,), "float32")
    better = T.alloc_buffer((1,), "int32")
    for g in T.serial(spec.groups):
        first[g] = T.float32(MINUS_INFINITY)
        second[g] = T.float32(MINUS_INFINITY)
        for i in T.serial(size):
            second[g] = T.max(second[g], T.min(first[g], choice[g * size + i]))
            first[g] = T.max(first[g], choice[g * size + i])
        if spec.group_score == "sum_top2" and size > 1:
            first[g] = first[g] + second[g]
    for g in T.serial(spec.groups):
        better[0] = 0
        for other in T.serial(spec.groups):
            if T.Or(first[other] > first[g], T.And(first[other] == first[g], other < g)):
                better[0] = better[0] + 1
        if better[0] >= spec.groups_kept:
            for i in T.serial(size):
                choice[g * size + i] = T.float32(MINUS_INFINITY)


@T.inline
def _largest(E, k, choice, best, ids):
    place = T.alloc_buffer((1,), "int32")
    for e in T.serial(E):
        if T.Or(e < k, choice[e] > best[k - 1]):
            place[0] = T.min(T.cast(e, "int32"), k - 1)
            while T.And(place[0] > 0, choice[e] > best[T.max(place[0] - 1, 0)]):
                best[place[0]] = best[place[0] - 1]
                ids[place[0]] = ids[place[0] - 1]
                place[0] = place[0] - 1
            best[place[0]] = choice[e]
            ids[place[0]] = T.cast(e, "int32")


@T.inline
def _weight(spec, first, score, weight):
    """Weight of a token's expert, up to a factor that all experts of the token share."""
    weight[0] = score
    if spec.score == "softmax_topk":
        weight[0] = exponential(score - first)
    if spec.score == "sigmoid_topk":
        weight[0] = activation.sigmoid(score)


@T.inline
def _give_way(spec, E, tolerance, scores, choice, ids):
    other = T.alloc_buffer((1,), "int32")
    largest = T.alloc_buffer((1,), "float32")
    lost = T.alloc_buffer((1,), "float32")
    gained = T.alloc_buffer((1,), "float32")
    for j in T.serial(spec.k):
        choice[ids[j]] = T.float32(MINUS_INFINITY)
    for j in T.serial(spec.k - 1):
        slot: T.let = spec.k - 1 - j
        if tolerance[ids[slot]] > T.float32(0):
            other[0] = -1
            largest[0] = T.float32(MINUS_INFINITY)
            for e in T.serial(E):
                if T.And(choice[e] > largest[0], tolerance[e] <= T.float32(0)):
                    largest[0] = choice[e]
                    other[0] = T.cast(e, "int32")
            if other[0] >= 0:
                _weight(spec, scores[ids[0]], scores[ids[slot]], lost)
                _weight(spec, scores[ids[0]], scores[other[0]], gained)
                if gained[0] >= lost[0] * (T.float32(1) - tolerance[ids[slot]]):
                    ids[slot] = other[0]
                    choice[other[0]] = T.float32(MINUS_INFINITY)


@T.inline
def _sparse_mixer(spec, E, token, logits, original, remaining, ids, mixing):
    top = T.alloc_buffer((1,), "float32")
    total = T.alloc_buffer((1,), "float32")
    for e in T.serial(E):
        original[e] = T.cast(logits[token, e], "float32")
        remaining[e] = _comparable(original[e])
    for j in T.serial(spec.k):
        ids[j] = 0
        top[0] = remaining[0]
        for e in T.serial(E):
            if remaining[e] > top[0]:
                top[0] = remaining[e]
                ids[j] = T.cast(e, "int32")
        total[0] = T.float32(0)
        for e in T.serial(E):
            distance: T.let = (top[0] - original[e]) / T.max(T.abs(original[e]), top[0])
            share: T.let = exponential(remaining[e] - top[0])
            # The comparison stays as it is, not negated: a distance of 0 / 0 counts as near.
            total[0] = total[0] + T.Select(distance > T.float32(2 * spec.jitter), T.float32(0), share)
        mixing[j] = T.float32(1) / total[0]
        remaining[ids[j]] = T.float32(MINUS_INFINITY)


@T.inline
def _drop_below_largest(spec, ids, mixing):
    largest = T.alloc_buffer((1,), "float32")
    largest[0] = T.float32(0)
    for j in T.serial(spec.k):
        largest[0] = T.max(largest[0], T.Select(T.isnan(mixing[j]), T.float32(0), T.abs(mixing[j])))
    for j in T.serial(spec.k):
        if T.abs(mixing[j]) < T.float32(spec.relative_threshold) * largest[0]:
            ids[j] = -1
            mixing[j] = T.float32(0)


@T.inline
def _finish(spec, token, ids, mixing, weights, chosen):
    total = T.alloc_buffer((1,), "float32")
    total[0] = T.float32(0)
    if spec.threshold is not None:
        for j in T.serial(spec.k):
            ids[j] = T.Select(mixing[j] > T.float32(spec.threshold), ids[j], -1)
            mixing[j] = T.Select(ids[j] < 0, T.float32(0), mixing[j])
    if spec.relative_threshold > 0:
        _drop_below_largest(spec, ids, mixing)
    for j in T.serial(spec.k):
        total[0] = total[0] + mixing[j]
    if spec.normalize:
        total[0] = total_to_divide_by(spec, total[0])
    for j in T.serial(spec.k):
        share: T.let = mixing[j] / total[0] if spec.normalize else mixing[j]
        chosen[token, j] = ids[j]
        weights[token, j] = T.cast(T.Select(ids[j] < 0, T.float32(0), share * T.float32(spec.scale)), weights.dtype)


@T.inline
def _route_token(spec, E, token, logits, bias, tolerance, weights, chosen):
    scores = T.alloc_buffer((E,), "float32")
    choice = T.alloc_buffer((E,), "float32")
    best = T.alloc_buffer((spec.k,), "float32")
    ids = T.alloc_buffer((spec.k,), "int32")
    mixing = T.alloc_buffer((spec.k,), "float32")
    if spec.score == "sparsemixer":
        _sparse_mixer(spec, E, token, logits, scores, choice, ids, mixing)
    else:
        _scores(spec, E, token, logits, scores)
        for e in T.serial(E):
            choice[e] = _comparable(scores[e] if bias is None else scores[e] + bias[e])
        if spec.groups > 1:
            _keep_best_groups(spec, E, choice)
        if spec.selection == "all":
            for j in T.serial(spec.k):
                ids[j] = j
        else:
            _largest(E, spec.k, choice, best, ids)
        if tolerance is not None:
            _give_way(spec, E, tolerance, scores, choice, ids)
        for j in T.serial(spec.k):
            mixing[j] = activation.sigmoid(scores[ids[j]]) if spec.score == "sigmoid_topk" else scores[ids[j]]
        if spec.score == "softmax_topk":
            _softmax(spec.k, mixing)
    _finish(spec, token, ids, mixing, weights, chosen)


def route(problem: RouteProblem) -> tirx.PrimFunc:
    """``(logits[T, E], correction_bias[E] if biased, tolerance[E] if tolerant, weights[T, k], experts[T, k])``;
    capacity is left to :mod:`.capacity`. Logits and weights have ``dtype``, the others are float32."""
    spec, experts, dtype = problem.spec, problem.experts, problem.dtype
    if problem.tolerant:

        @T.prim_func(s_tir=True)
        def tolerant_kernel(
            logits_handle: T.handle,
            bias_handle: T.handle,
            tolerance_handle: T.handle,
            weights_handle: T.handle,
            experts_handle: T.handle,
        ):
            T.func_attr({"tirx.noalias": True})
            tokens = T.int64()
            logits = T.match_buffer(logits_handle, (tokens, experts), dtype)
            bias = T.match_buffer(bias_handle, (experts,), "float32")
            tolerance = T.match_buffer(tolerance_handle, (experts,), "float32")
            weights = T.match_buffer(weights_handle, (tokens, spec.k), dtype)
            chosen = T.match_buffer(experts_handle, (tokens, spec.k), "int32")
            for token in parallel_rows(tokens, experts * _LOGIT_WORK):
                _route_token(spec, experts, token, logits, bias, tolerance, weights, chosen)

        return tolerant_kernel

    if problem.biased:

        @T.prim_func(s_tir=True)
        def biased_kernel(
            logits_handle: T.handle, bias_handle: T.handle, weights_handle: T.handle, experts_handle: T.handle
        ):
            T.func_attr({"tirx.noalias": True})
            tokens = T.int64()
            logits = T.match_buffer(logits_handle, (tokens, experts), dtype)
            bias = T.match_buffer(bias_handle, (experts,), "float32")
            weights = T.match_buffer(weights_handle, (tokens, spec.k), dtype)
            chosen = T.match_buffer(experts_handle, (tokens, spec.k), "int32")
            for token in parallel_rows(tokens, experts * _LOGIT_WORK):
                _route_token(spec, experts, token, logits, bias, None, weights, chosen)

        return biased_kernel

    @T.prim_func(s_tir=True)
    def kernel(logits_handle: T.handle, weights_handle: T.handle, experts_handle: T.handle):
        T.func_attr({"tirx.noalias": True})
        tokens = T.int64()
        logits = T.match_buffer(logits_handle, (tokens, experts), dtype)
        weights = T.match_buffer(weights_handle, (tokens, spec.k), dtype)
        chosen = T.match_buffer(experts_handle, (tokens, spec.k), "int32")
        for token in parallel_rows(tokens, experts * _LOGIT_WORK):
            _route_token(spec, experts, token, logits, None, None, weights, chosen)

    return kernel


ROUTE = Kernel(
    "route",
    "weights[T, k], experts[T, k] = route(logits[T, E])",
    route,
    how=lambda problem, _: in_storage(
        f"one pass per token over {problem.experts} logits, {problem.spec.k} kept by insertion; "
        "ties go to the lower id",
        problem.dtype,
    ),
    why_not=lambda problem, _: why_not(problem.spec) or why_not_stored(problem.dtype),
)
