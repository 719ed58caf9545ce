"""Capacity: drop the pairs that find their expert full. All first choices are served before any second choice."""

from __future__ import annotations

from tvm import tirx
from tvm.script import tirx as T

from moec.targets.tvm.heavy.route import RouteProblem
from moec.targets.tvm.kernels.kernel import Kernel


def capacity(problem: RouteProblem) -> tirx.PrimFunc:
    """``(weights[T, k], experts[T, k], kept_weights[T, k], kept_experts[T, k])``; dropped pairs get id -1 and weight 0.

    Sequential, because whether a pair is dropped depends on all pairs before it.
    """
    experts, limit, dtype = problem.experts, problem.spec.capacity, problem.dtype

    @T.prim_func(s_tir=True)
    def kernel(
        weights_handle: T.handle, experts_handle: T.handle, kept_weights_handle: T.handle, kept_experts_handle: T.handle
    ):
        T.func_attr({"tirx.noalias": True})
        tokens = T.int64()
        slots = T.int64()
        weights = T.match_buffer(weights_handle, (tokens, slots), dtype)
        chosen = T.match_buffer(experts_handle, (tokens, slots), "int32")
        kept_weights = T.match_buffer(kept_weights_handle, (tokens, slots), dtype)
        kept_experts = T.match_buffer(kept_experts_handle, (tokens, slots), "int32")
        served = T.alloc_buffer((experts,), "int32")
        for e in T.serial(experts):
            served[e] = 0
        for slot, token in T.grid(slots, tokens):
            expert: T.let = chosen[token, slot]
            kept_weights[token, slot] = T.cast(T.float32(0), dtype)
            kept_experts[token, slot] = -1
            if expert >= 0:
                if served[expert] < limit:
                    kept_weights[token, slot] = weights[token, slot]
                    kept_experts[token, slot] = expert
                served[expert] = served[expert] + 1

    return kernel


CAPACITY = Kernel(
    "capacity",
    "drops pairs beyond their expert's capacity, later slots first",
    capacity,
    how=lambda problem, _: (
        f"at most {problem.spec.capacity} pairs per expert; "
        "in one thread, a pair's place depends on all pairs before it"
    ),
)
