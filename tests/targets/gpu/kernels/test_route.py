"""The routing kernels for CUDA against the reference, in the emulator."""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np
import pytest

from moec.ir import semantics
from moec.ir.dialect import RouteSpec, choices
from moec.targets.gpu.kernels import capacity, route
from moec.targets.tvm.heavy.route import RouteProblem

from ....products import thinned
from ...cuda.kernels.kernel_runner import build

RANDOM = np.random.default_rng(0)
TOKENS = (0, 1, 7, 64, 300)
NAN, INF = np.nan, np.inf
ODD_LOGITS = np.array(
    [
        [0, 0, 0, 0, 0, 0, 0, 0],
        [NAN, 1, 2, 3, 4, 5, 6, 7],
        [INF, 1, 2, 3, 4, 5, 6, 7],
        [-INF] * 8,
        [NAN] * 8,
        [-INF, INF, NAN, 0, 0, 0, 1, 1],
        [5, -INF, -INF, -INF, -INF, -INF, -INF, -INF],
        [0, 0, 0, NAN, 0, 0, -INF, NAN],
        [1, 3, 3, 1, 2, 2, 3, 3],
        [-1, -0.0, 0.0, -0.0, 0.0, -2, -3, -INF],
        [-3e-45, -1, -1e-45, 1e-45, 3e-45, -0.0, -2, -1],
    ],
    np.float32,
)
"""Logits with ties, zeros of both signs, numbers next to zero, NaN and infinities."""


def routed(kernel, spec: RouteSpec, logits: np.ndarray, bias: np.ndarray | None) -> list[np.ndarray]:
    inputs = [logits] if bias is None else [logits, bias]
    weights = np.full((len(logits), spec.k), 7, logits.dtype)
    return kernel.outputs(2, *inputs, weights, np.full((len(logits), spec.k), -7, np.int32))


def check(kernel, spec: RouteSpec, logits: np.ndarray, bias: np.ndarray | None = None, tolerance: float = 1e-5) -> None:
    weights, experts = routed(kernel, spec, logits, bias)
    expected_weights, expected_experts = semantics.route(spec, logits, bias)
    np.testing.assert_array_equal(experts, expected_experts)
    wide = np.float32
    np.testing.assert_allclose(weights.astype(wide), expected_weights.astype(wide), rtol=tolerance, atol=1e-6)


ROUTERS = {
    "softmax": (RouteSpec(k=3, normalize=True, normalize_epsilon=1e-20, scale=2.5), 256),
    "softmax_topk": (RouteSpec(k=4, score="softmax_topk"), 33),
    "sigmoid": (RouteSpec(k=3, score="sigmoid", normalize=True), 40),
    "sigmoid_topk": (RouteSpec(k=3, score="sigmoid_topk", normalize=True), 40),
    "sum with a floor": (RouteSpec(k=2, score="sigmoid", normalize=True, normalize_floor=1.5), 8),
    "softplus": (RouteSpec(k=3, score="softplus"), 8),
    "sqrt_softplus": (RouteSpec(k=3, score="sqrt_softplus"), 8),
    "relu": (RouteSpec(k=3, score="relu"), 8),
    "identity": (RouteSpec(k=3, score="identity"), 8),
    "sparsemixer": (RouteSpec(k=2, score="sparsemixer", jitter=0.1), 16),
    "groups by their best two": (
        RouteSpec(k=8, score="sigmoid", groups=8, groups_kept=4, group_score="sum_top2", normalize=True, scale=2.5),
        256,
    ),
    "groups by their best": (RouteSpec(k=4, groups=4, groups_kept=2), 64),
    "threshold": (RouteSpec(k=4, score="sigmoid", threshold=0.8, normalize=True), 64),
    "share of the largest": (RouteSpec(k=4, relative_threshold=0.5, normalize=True, scale=2.5), 64),
    "share of more slots than lanes": (RouteSpec(k=40, score="identity", threshold=-1.0, relative_threshold=0.3), 257),
    "all": (RouteSpec(k=40, selection="all"), 40),
    "more slots than lanes": (RouteSpec(k=40, score="softmax_topk", normalize=True), 257),
    "one expert": (RouteSpec(k=1), 1),
}


@thinned("name", list(ROUTERS), 10)
def test_router(name):
    spec, experts = ROUTERS[name]
    kernel = build(route.route(RouteProblem(spec, experts)))
    for tokens in TOKENS:
        check(kernel, spec, 2 * RANDOM.standard_normal((tokens, experts), np.float32))


@thinned("score", ["softmax", "softmax_topk", "sigmoid", "softplus", "sqrt_softplus", "relu", "identity"], 2)
def test_ties_and_numbers_that_are_none(score):
    spec = RouteSpec(k=3, score=score)
    check(build(route.route(RouteProblem(spec, 8))), spec, ODD_LOGITS)


@thinned("score", ["softmax", "softmax_topk", "identity"], 2)
@thinned("share", [0.5, 1.0], 2)
def test_a_share_of_the_largest_with_ties_and_numbers_that_are_none(score, share):
    spec = RouteSpec(k=5, score=score, relative_threshold=share)
    check(build(route.route(RouteProblem(spec, 8))), spec, ODD_LOGITS)


@pytest.mark.parametrize("group_score", ["max", "sum_top2"])
def test_groups_with_ties_and_numbers_that_are_none(group_score):
    spec = RouteSpec(k=4, score="identity", groups=4, groups_kept=2, group_score=group_score)
    check(build(route.route(RouteProblem(spec, 8))), spec, ODD_LOGITS)


def test_sparse_mixer_with_ties_and_numbers_that_are_none():
    spec = RouteSpec(k=2, score="sparsemixer", jitter=0.01)
    check(build(route.route(RouteProblem(spec, 8))), spec, ODD_LOGITS)


def test_a_bias_moves_the_choice_and_not_the_weight():
    spec = RouteSpec(k=4, score="sigmoid")
    logits, bias = RANDOM.standard_normal((37, 64), np.float32), RANDOM.standard_normal(64, np.float32)
    check(build(route.route(RouteProblem(spec, 64, biased=True))), spec, logits, bias)
    assert (semantics.route(spec, logits, bias)[1] != semantics.route(spec, logits)[1]).any()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision(dtype):
    spec = RouteSpec(k=8, normalize=True)
    logits = RANDOM.standard_normal((37, 1024)).astype(dtype)
    check(build(route.route(RouteProblem(spec, 1024, np.dtype(dtype).name))), spec, logits, tolerance=1e-2)


@pytest.mark.parametrize("tokens", TOKENS)
def test_capacity_serves_first_choices_first(tokens):
    spec = RouteSpec(k=3, capacity=20)
    logits = RANDOM.standard_normal((tokens, 16), np.float32)
    routed = semantics.route(dataclasses.replace(spec, capacity=0), logits)
    expected = semantics.route(spec, logits)
    outputs = np.full((tokens, 3), 7, np.float32), np.full((tokens, 3), -7, np.int32)
    weights, experts = build(capacity.capacity(RouteProblem(spec, 16))).outputs(2, *routed, *outputs)
    np.testing.assert_array_equal(experts, expected[1])
    np.testing.assert_array_equal(weights, expected[0])


@pytest.mark.parametrize("score", choices(RouteSpec, "score"))
def test_every_score_of_the_dialect_is_routed(score):
    assert route.why_not(RouteSpec(k=2, score=score), 8, "float32") is None


def test_what_cannot_be_routed_has_a_reason():
    assert route.why_not(RouteSpec(k=2), 1024, "float32") is None
    assert "one token at a time" in route.why_not(RouteSpec(k=8, selection="expert_choice", capacity=2), 8, "float32")
    assert "1025 experts" in route.why_not(RouteSpec(k=2), 1025, "float32")
    assert "float64" in route.why_not(RouteSpec(k=2), 8, "float64")
    assert "score 'cubed'; the kernel has identity" in route.why_not(RouteSpec(k=2, score="cubed"), 8, "float32")
    assert capacity.why_not(512) is None
    assert "20000 experts" in capacity.why_not(20000)
