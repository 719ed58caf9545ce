"""The kernels of the MoE operators on a GPU as the selector sees them: what each computes, which problems it can do."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from moec.targets.base import Eligibility
from moec.targets.cuda.kernels import (
    capacity,
    combine,
    dispatch,
    expert_choice,
    grouped_gemm_mma,
    grouped_gemm_simt,
    grouped_gemm_wgmma,
    grouped_gemv,
    round_rows,
    route,
)
from moec.targets.cuda.kernels.grouped_problem import GroupedProblem
from moec.targets.tvm.routing import RouteProblem
from moec.targets.tvm.selection import Kernel


@dataclasses.dataclass(frozen=True)
class RowsProblem:
    """Rows of ``width`` columns that are rounded, or brought back from pairs to tokens; the types of all tensors."""

    width: int
    dtypes: tuple[str, ...]


def _because(reason: str | None, how: str) -> Eligibility:
    return Eligibility(True, how) if reason is None else Eligibility(False, reason)


def _can_route(problem: RouteProblem, architecture: str) -> Eligibility:
    how = f"one warp per token, {problem.spec.k} of {problem.experts} kept in registers; ties go to the lower id"
    return _because(route.why_not(problem.spec, problem.experts, problem.dtype), how)


def _can_choose_tokens(how: str) -> Callable[[RouteProblem, str], Eligibility]:
    def can(problem: RouteProblem, architecture: str) -> Eligibility:
        return _because(expert_choice.why_not(problem.spec, problem.experts, problem.dtype), how)

    return can


def _can_drop(problem: RouteProblem, architecture: str) -> Eligibility:
    how = f"at most {problem.spec.capacity} pairs per expert, in one block of threads: pairs are served in order"
    return _because(capacity.why_not(problem.experts), how)


def _can_dispatch(experts: int, architecture: str) -> Eligibility:
    how = f"stable counting sort into {experts} experts by one block of threads, without atomics"
    return _because(dispatch.why_not(experts), how)


def _can_dispatch_chunks(how: str) -> Callable[[int, str], Eligibility]:
    return lambda experts, architecture: _because(dispatch.why_not(experts), how)


def _can_combine(problem: RowsProblem, architecture: str) -> Eligibility:
    return _because(combine.why_not(*problem.dtypes), "one thread per element, slots in their order")


def _can_round(problem: RowsProblem, architecture: str) -> Eligibility:
    how = "one warp per group of a row: largest magnitude / 127 is its scale; rows stay floats"
    return _because(round_rows.why_not(*problem.dtypes), how)


def _product(why_not: Callable[[GroupedProblem], str | None], how: str) -> Callable[[GroupedProblem, str], Eligibility]:
    def can(problem: GroupedProblem, architecture: str) -> Eligibility:
        return _because(why_not(problem), f"{how}; blocks of {problem.block_rows} rows, grid from the upper bound")

    return can


def _can_use_wgmma(problem: GroupedProblem, architecture: str) -> Eligibility:
    if architecture != "sm_90a":
        return Eligibility(False, f"the code is for {architecture}; wgmma needs sm_90a")
    return _product(grouped_gemm_wgmma.why_not, grouped_gemm_wgmma.way_of(problem))(problem, architecture)


ROUTE = (Kernel("route", "weights[T, k], experts[T, k] = top k of the scores of logits[T, E]", _can_route),)
SCORE_TOKENS = (
    Kernel(
        "score_tokens", "keys[E, T] in the order of what experts choose by", _can_choose_tokens("one warp per token")
    ),
)
TAKE_TOKENS = (
    Kernel(
        "take_tokens",
        "taken[t, e] = e for the tokens with the largest keys[e], else -1",
        _can_choose_tokens(
            "one block per expert, the smallest key it takes found bit by bit; ties go to the lower token"
        ),
    ),
)
WEIGH_TOKENS = (
    Kernel("weigh_tokens", "weights[T, E] of the experts that took a token", _can_choose_tokens("one warp per token")),
)
CAPACITY = (Kernel("capacity", "pairs beyond the capacity of their expert become id -1, weight 0", _can_drop),)
DISPATCH = (Kernel("dispatch", "pairs sorted by expert, padded to blocks", _can_dispatch),)
COUNT_PAIRS = (
    Kernel("count_pairs", "pair_counts[chunk, e]", _can_dispatch_chunks("one block of threads per 4096 pairs")),
)
PLACE_CHUNKS = (
    Kernel(
        "place_chunks",
        "starts[chunk, e] in the order of experts, then chunks, padded to blocks",
        _can_dispatch_chunks("one block of threads adds up the chunks"),
    ),
)
SCATTER_PAIRS = (
    Kernel(
        "scatter_pairs",
        "pairs sorted by expert",
        _can_dispatch_chunks("one block of threads per 4096 pairs, in their order, without atomics"),
    ),
)
PRODUCTS = (
    Kernel("grouped_gemm_wgmma", "out[r] = activation(rows[r] @ matrix[expert of r].T + bias)", _can_use_wgmma),
    Kernel(
        "grouped_gemm_mma",
        "out[r] = activation(rows[r] @ matrix[expert of r].T + bias)",
        _product(grouped_gemm_mma.why_not, "tensor cores (mma.sync), panels by cp.async in several stages"),
    ),
    Kernel(
        "grouped_gemm_simt",
        "out[r] = activation(rows[r] @ matrix[expert of r].T + bias)",
        _product(grouped_gemm_simt.why_not, "float32 multiply-adds, panels in shared memory, any size"),
    ),
)
FEW_PRODUCTS = (
    Kernel(
        "grouped_gemv",
        "out[pair] = activation(rows[pair] @ matrix[expert of pair].T + bias)",
        _product(grouped_gemv.why_not, f"up to {grouped_gemv.FEW_TOKENS} tokens: a warp per outputs of a pair"),
    ),
)
COMBINE = (Kernel("combine", "y[t] = sum over slots of weight * result of the pair", _can_combine),)
ROUND = (Kernel("round_rows", "rows[r] = scale * round(rows[r] / scale), a scale for each group", _can_round),)
SEPARATE = (Kernel("separate", "y[t, slot] = result of the pair", _can_combine),)
GENERATORS = {
    "grouped_gemm_wgmma": grouped_gemm_wgmma.grouped_gemm_wgmma,
    "grouped_gemm_mma": grouped_gemm_mma.grouped_gemm_mma,
    "grouped_gemm_simt": grouped_gemm_simt.grouped_gemm_simt,
}
