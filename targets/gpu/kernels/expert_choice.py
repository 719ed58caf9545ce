"""Expert choice: every expert takes the tokens that it scores highest, as many as its capacity. Three kernels:

1. :func:`score_tokens` computes a key for each token and expert, with a warp per token as in :mod:`.route`. A key is an
   unsigned number in the order of the selection scores, in which both zeros are equal and NaN is -inf.
2. :func:`take_tokens` finds the capacity-th largest key of each expert, with a block of threads per expert. It
   determines that key bit by bit, each time counting the keys that are at least as large as a candidate. Tokens with
   larger keys are taken, and of those with an equal key the first ones, counted as in :mod:`.ordered_walk`.
3. :func:`weigh_tokens` scores the experts again, with a warp per token, and computes the weights of those that took the
   token.

All tokens of a call compete. The result is unique and does not depend on timing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from moec.ir.dialect import RouteSpec
from moec.targets.gpu.kernels import route_token
from moec.targets.gpu.kernels.instructions import reduce_lanes, sync_block, sync_warp
from moec.targets.gpu.kernels.launch import ATTRIBUTES, WARP
from moec.targets.gpu.kernels.ordered_walk import (
    clear_counts,
    start_after_earlier_warps,
    start_walk,
    walk_in_order,
)
from moec.targets.gpu.kernels.route_token import finish, mix, score_choices, start_token
from moec.targets.tvm.heavy.route import RouteProblem
from moec.targets.tvm.kernels.kernel import Kernel

WARPS = 16
"""The warps of the block that handles an expert."""
_SIGN = 1 << 31
_TIE, _NO_TIE = 0, 1
"""Ids in the walk over the tokens, which has one expert, 0: so it counts ties."""


def why_not(spec: RouteSpec, experts: int, dtype: str) -> str | None:
    """The reason why these kernels cannot compute the routing, or None."""
    if spec.selection != "expert_choice":
        return f"selection is {spec.selection}; here experts choose tokens"
    return route_token.why_not(spec, experts, dtype)


def _key(choice: Any) -> Any:
    """The unsigned key of a float32: its bits with the sign bit set, or all bits inverted if it is negative, because
    larger magnitudes are then smaller numbers."""
    bits = T.reinterpret("uint32", choice)
    return T.Select(bits >= T.uint32(_SIGN), ~bits, bits | T.uint32(_SIGN))


@T.inline
def _score_token(logits, bias, keys, token):
    x = T.alloc_local((token.per_lane,), "float32")
    choice = T.alloc_local((token.per_lane,), "float32")
    score_choices(token, logits, bias, x, choice)
    for i in T.unroll(token.per_lane):
        if token.expert(i) < token.experts:
            # Both zeros get the same key.
            unsigned: T.let = T.Select(choice[i] == T.float32(0), T.float32(0), choice[i])
            keys[T.cast(token.expert(i), "int64"), token.index] = _key(unsigned)


def score_tokens(problem: RouteProblem) -> tirx.PrimFunc:
    """The kernel ``(logits[T, E], correction_bias[E] if biased, keys[E, T])``. Logits have ``dtype``, the bias is
    float32, keys are uint32. T is dynamic and may be 0."""
    spec, experts, dtype = problem.spec, problem.experts, problem.dtype
    if problem.biased:

        @T.prim_func
        def biased_kernel(logits_handle: T.handle, bias_handle: T.handle, keys_handle: T.handle):
            T.func_attr(ATTRIBUTES)
            tokens = T.int32()
            logits = T.match_buffer(logits_handle, (tokens, experts), dtype)
            bias = T.match_buffer(bias_handle, (experts,), "float32")
            keys = T.match_buffer(keys_handle, (experts, tokens), "uint32")
            T.device_entry()
            start_token(spec, experts, tokens, functools.partial(_score_token, logits, bias, keys))

        return biased_kernel

    @T.prim_func
    def kernel(logits_handle: T.handle, keys_handle: T.handle):
        T.func_attr(ATTRIBUTES)
        tokens = T.int32()
        logits = T.match_buffer(logits_handle, (tokens, experts), dtype)
        keys = T.match_buffer(keys_handle, (experts, tokens), "uint32")
        T.device_entry()
        start_token(spec, experts, tokens, functools.partial(_score_token, logits, None, keys))

    return kernel


@T.inline
def _count(walk, key_at, least, number):
    """Set ``number`` to the number of keys, of all tokens, that are at least ``least``."""
    number[0] = 0
    for step in T.serial(T.ceildiv(walk.end - walk.first, WARP)):
        place: T.let = walk.first + step * WARP + walk.lane
        if place < walk.end:
            number[0] = number[0] + T.cast(key_at(place) >= least, "int32")
    number[0] = reduce_lanes(number[0], "sum")
    if walk.lane == 0:
        walk.counts[walk.warp, 0] = number[0]
    sync_block()
    number[0] = 0
    if walk.lane < walk.warps:
        number[0] = walk.counts[walk.lane, 0]
    number[0] = reduce_lanes(number[0], "sum")
    sync_block()


@T.inline
def _find_last_key(walk, key_at, limit, last, number):
    """Set ``last`` to the ``limit``-th largest key."""
    last[0] = T.uint32(0)
    for bit in T.serial(32):
        candidate: T.let = last[0] | (T.uint32(_SIGN) >> T.cast(bit, "uint32"))
        _count(walk, key_at, candidate, number)
        if number[0] >= limit:
            last[0] = candidate


@T.inline
def _take(experts, capacity, tokens, thread, expert, keys, taken, totals, walk):
    last = T.alloc_local((1,), "uint32")
    number = T.alloc_local((1,), "int32")
    limit: T.let = T.min(tokens, capacity)
    key_at = T.meta_var(lambda place: keys[T.cast(expert, "int64"), place])
    tie_at = T.meta_var(lambda place: T.Select(key_at(place) == last[0], _TIE, _NO_TIE))

    @T.inline
    def take_first_ties(place, _tie, rank):
        if rank < limit - number[0]:
            taken[T.cast(place, "int64"), expert] = expert

    _find_last_key(walk, key_at, limit, last, number)
    _count(walk, key_at, last[0] + T.uint32(1), number)
    for step in T.serial(T.ceildiv(walk.end - walk.first, WARP)):
        place: T.let = walk.first + step * WARP + walk.lane
        if place < walk.end:
            taken[T.cast(place, "int64"), expert] = T.Select(key_at(place) > last[0], expert, -1)
    clear_counts(walk)
    walk_in_order(walk, tie_at, lambda place, tie, rank: None)
    start_after_earlier_warps(walk, thread, totals)
    walk_in_order(walk, tie_at, take_first_ties)


def take_tokens(problem: RouteProblem) -> tirx.PrimFunc:
    """The kernel ``(keys[E, T] uint32, taken[T, E] int32)``. ``taken[t, e]`` becomes e if expert e takes token t,
    else -1."""
    experts, capacity = problem.experts, problem.spec.capacity

    @T.prim_func
    def kernel(keys_handle: T.handle, taken_handle: T.handle):
        T.func_attr(ATTRIBUTES)
        tokens = T.int32()
        keys = T.match_buffer(keys_handle, (experts, tokens), "uint32")
        taken = T.match_buffer(taken_handle, (tokens, experts), "int32")
        T.device_entry()
        expert = T.cta_id([experts])
        thread = T.thread_id([WARPS * WARP])
        counts = T.alloc_shared((WARPS, 1), "int32")
        totals = T.alloc_shared((1,), "int32")
        body = T.meta_var(functools.partial(_take, experts, capacity, tokens, thread, expert, keys, taken, totals))
        start_walk(1, WARPS, thread, tokens, counts, body)

    return kernel


@T.inline
def _weigh_token(logits, taken, weights, chosen, token):
    x = T.alloc_local((token.per_lane,), "float32")
    choice = T.alloc_local((token.per_lane,), "float32")
    score_choices(token, logits, None, x, choice)
    for i in T.unroll(token.per_lane):
        if token.expert(i) < token.experts:
            token.ids[token.warp, token.expert(i)] = taken[token.index, token.expert(i)]
    sync_warp()
    mix(token)
    finish(token, weights, chosen)


def weigh_tokens(problem: RouteProblem) -> tirx.PrimFunc:
    """The kernel ``(logits[T, E], taken[T, E], weights[T, E], experts[T, E])``. Logits and weights have ``dtype``, ids
    are int32."""
    spec, experts, dtype = problem.spec, problem.experts, problem.dtype

    @T.prim_func
    def kernel(logits_handle: T.handle, taken_handle: T.handle, weights_handle: T.handle, experts_handle: T.handle):
        T.func_attr(ATTRIBUTES)
        tokens = T.int32()
        logits = T.match_buffer(logits_handle, (tokens, experts), dtype)
        taken = T.match_buffer(taken_handle, (tokens, experts), "int32")
        weights = T.match_buffer(weights_handle, (tokens, experts), dtype)
        chosen = T.match_buffer(experts_handle, (tokens, experts), "int32")
        T.device_entry()
        start_token(spec, experts, tokens, functools.partial(_weigh_token, logits, taken, weights, chosen))

    return kernel


def _kernel(name: str, computes: str, build: Callable[..., tirx.PrimFunc], how: str) -> Kernel:
    def refusal(routing: RouteProblem, machine: Any) -> str | None:
        return why_not(routing.spec, routing.experts, routing.dtype)

    return Kernel(name, computes, build, lambda routing, _: how, refusal)


SCORE_TOKENS = _kernel(
    "score_tokens", "keys[E, T] in the order of what experts choose by", score_tokens, "one warp per token"
)
TAKE_TOKENS = _kernel(
    "take_tokens",
    "taken[t, e] = e for the tokens with the largest keys[e], else -1",
    take_tokens,
    "one block per expert, the smallest key it takes found bit by bit; ties go to the lower token",
)
WEIGH_TOKENS = _kernel(
    "weigh_tokens", "weights[T, E] of the experts that took a token", weigh_tokens, "one warp per token"
)
