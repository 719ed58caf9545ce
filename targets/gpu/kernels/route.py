"""Route: one warp per token scores the experts, selects k of them and computes their weights, in one pass over logits.

The steps before and after the selection are in :mod:`.route_token`. A round of the selection finds the largest
remaining score: each lane among its own scores, then the warp among the lanes by ``redux.sync``. That instruction
compares integers, so scores are compared as integer keys. A second one finds the lowest id with the largest key, so
ties go to the lower id. NaN counts as -inf in the selection, as :mod:`moec.ir.semantics` says.
"""

from __future__ import annotations

import functools

from tvm import tirx
from tvm.script import tirx as T

from moec.ir.dialect import RouteSpec
from moec.targets.gpu.kernels import route_token
from moec.targets.gpu.kernels.instructions import largest_of_lanes, reduce_lanes, smallest_of_lanes, sync_warp
from moec.targets.gpu.kernels.launch import BESIDE, EARLY_ATTRIBUTES, WARP
from moec.targets.gpu.kernels.route_token import (
    MINUS_INFINITY,
    comparable,
    finish,
    mix,
    per_lane,
    read_logits,
    score_choices,
    share_with_warp,
    start_token,
)
from moec.targets.tvm.heavy.route import RouteProblem
from moec.targets.tvm.kernels.kernel import Kernel
from moec.targets.tvm.text.steps import begin_step

_NOBODY = 2**31 - 1
"""An expert id that loses every tie."""
_NOTHING = -(2**31)
"""A key below that of any number."""


def why_not(spec: RouteSpec, experts: int, dtype: str) -> str | None:
    """The reason why :func:`route` cannot compute the routing, or None."""
    if spec.selection == "expert_choice":
        return "expert_choice lets experts choose among all tokens; this kernel looks at one token at a time"
    return route_token.why_not(spec, experts, dtype)


@T.inline
def _set_key(keys, i, choice):
    """Set ``keys[i]`` (int32) to a key with the same order as the score ``choice``: equal for equal scores, which both
    zeros are, and above :data:`_NOTHING`."""
    number: T.let = T.Select(choice == T.float32(0), T.float32(0), choice)
    bits: T.let = T.reinterpret("int32", number)
    keys[i] = bits ^ ((bits >> 31) & 0x7FFFFFFF)


@T.inline
def _find_largest(token, keys, taken, expert):
    """Set ``expert`` in every lane to the expert with the largest key of the warp, of those not taken. ``taken``: a bit
    for each expert of the lane."""
    own = T.alloc_local((1,), "int32")
    largest = T.alloc_local((1,), "int32")
    own[0] = _NOTHING
    expert[0] = _NOBODY
    for i in T.unroll(token.per_lane):
        left: T.let = T.And(token.expert(i) < token.experts, (taken[0] & T.uint32(1 << i)) == T.uint32(0))
        if T.And(left, keys[i] > own[0]):
            own[0] = keys[i]
            expert[0] = token.expert(i)
    largest[0] = largest_of_lanes(own[0])
    if own[0] < largest[0]:
        expert[0] = _NOBODY
    expert[0] = smallest_of_lanes(expert[0])


@T.inline
def _select_largest(token, choice):
    """Select the experts with the k largest scores, from large to small, into ``token.ids``."""
    keys = T.alloc_local((token.per_lane,), "int32")
    taken = T.alloc_local((1,), "uint32")
    expert = T.alloc_local((1,), "int32")
    for i in T.unroll(token.per_lane):
        _set_key(keys, i, choice[i])
    taken[0] = T.uint32(0)
    for slot in T.serial(token.spec.k):
        _find_largest(token, keys, taken, expert)
        for i in T.unroll(token.per_lane):
            if token.expert(i) == expert[0]:
                taken[0] = taken[0] | T.uint32(1 << i)
        if token.lane == 0:
            token.ids[token.warp, slot] = expert[0]


@T.inline
def _select_all(token):
    for step in T.serial(per_lane(token.spec.k)):
        if step * WARP + token.lane < token.spec.k:
            token.ids[token.warp, step * WARP + token.lane] = step * WARP + token.lane


@T.inline
def _mix_sparsely(token, logit):
    """Select and weigh k experts by the rounds of the sparse mixer. Shared memory holds the remaining logits, with -inf
    for those taken."""
    keys = T.alloc_local((token.per_lane,), "int32")
    taken = T.alloc_local((1,), "uint32")
    expert = T.alloc_local((1,), "int32")
    total = T.alloc_local((1,), "float32")
    taken[0] = T.uint32(0)  # stays 0: an expert that was taken competes again, with -inf
    for slot in T.serial(token.spec.k):
        for i in T.unroll(token.per_lane):
            if token.expert(i) < token.experts:
                _set_key(keys, i, comparable(token.scores[token.warp, token.expert(i)]))
        _find_largest(token, keys, taken, expert)
        top: T.let = token.scores[token.warp, expert[0]]
        total[0] = T.float32(0)
        for i in T.unroll(token.per_lane):
            if token.expert(i) < token.experts:
                distance: T.let = (top - logit[i]) / T.max(T.abs(logit[i]), top)
                share: T.let = T.exp(token.scores[token.warp, token.expert(i)] - top)
                # Do not negate this comparison: a distance of NaN (0 / 0) counts as near.
                total[0] = total[0] + T.Select(distance > T.float32(2 * token.spec.jitter), T.float32(0), share)
        total[0] = reduce_lanes(total[0], "sum")
        sync_warp()
        if token.lane == 0:
            token.ids[token.warp, slot] = expert[0]
            token.mixing[token.warp, slot] = T.float32(1) / total[0]
            token.scores[token.warp, expert[0]] = T.float32(MINUS_INFINITY)
        sync_warp()


@T.inline
def _route_token(logits, bias, weights, chosen, token):
    x = T.alloc_local((token.per_lane,), "float32")
    if token.spec.score == "sparsemixer":
        read_logits(token, logits, x)
        share_with_warp(token, x)
        _mix_sparsely(token, x)
    else:
        choice = T.alloc_local((token.per_lane,), "float32")
        begin_step("scores")
        score_choices(token, logits, bias, x, choice)
        if token.spec.selection == "all":
            _select_all(token)
        else:
            begin_step("the largest, one after the other")
            _select_largest(token, choice)
        sync_warp()
        begin_step("weights of the experts selected")
        mix(token)
    finish(token, weights, chosen)


def route(problem: RouteProblem) -> tirx.PrimFunc:
    """The kernel ``(logits[T, E], correction_bias[E] if biased, weights[T, k], experts[T, k])``. Logits and weights
    have ``dtype``, the bias is float32, experts are int32. T is dynamic and may be 0. The spec's capacity is left to
    :mod:`.capacity`."""
    spec, experts, dtype = problem.spec, problem.experts, problem.dtype
    if problem.biased:

        @T.prim_func
        def biased_kernel(
            logits_handle: T.handle, bias_handle: T.handle, weights_handle: T.handle, experts_handle: T.handle
        ):
            T.func_attr(EARLY_ATTRIBUTES)
            tokens = T.int32()
            logits = T.match_buffer(logits_handle, (tokens, experts), dtype)
            bias = T.match_buffer(bias_handle, (experts,), "float32")
            weights = T.match_buffer(weights_handle, (tokens, spec.k), dtype)
            chosen = T.match_buffer(experts_handle, (tokens, spec.k), "int32")
            T.device_entry()
            start_token(spec, experts, tokens, functools.partial(_route_token, logits, bias, weights, chosen))

        return biased_kernel.with_attr(BESIDE, True)

    @T.prim_func
    def kernel(logits_handle: T.handle, weights_handle: T.handle, experts_handle: T.handle):
        T.func_attr(EARLY_ATTRIBUTES)
        tokens = T.int32()
        logits = T.match_buffer(logits_handle, (tokens, experts), dtype)
        weights = T.match_buffer(weights_handle, (tokens, spec.k), dtype)
        chosen = T.match_buffer(experts_handle, (tokens, spec.k), "int32")
        T.device_entry()
        start_token(spec, experts, tokens, functools.partial(_route_token, logits, None, weights, chosen))

    return kernel.with_attr(BESIDE, True)


ROUTE = Kernel(
    "route",
    "weights[T, k], experts[T, k] = top k of the scores of logits[T, E]",
    route,
    how=lambda routing, _: (
        f"one warp per token, {routing.spec.k} of {routing.experts} kept in registers; ties go to the lower id"
    ),
    why_not=lambda routing, _: (
        "no expert takes the place of another; this kernel takes no tolerance"
        if routing.tolerant
        else why_not(routing.spec, routing.experts, routing.dtype)
    ),
)
