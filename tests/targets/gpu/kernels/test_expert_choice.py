"""Experts that choose their tokens, against the reference, in the emulator."""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np

from moec.ir import semantics
from moec.ir.dialect import RouteSpec
from moec.targets.gpu.kernels import expert_choice
from moec.targets.gpu.kernels.expert_choice import score_tokens, take_tokens, weigh_tokens
from moec.targets.tvm.heavy.route import RouteProblem

from ....products import thinned
from ...cuda.kernels.kernel_runner import build

RANDOM = np.random.default_rng(0)
ROUTERS = {
    "softmax": (RouteSpec(k=8, selection="expert_choice", capacity=5), np.float32),
    "softmax of those selected": (
        RouteSpec(k=40, selection="expert_choice", capacity=70, score="softmax_topk"),
        np.float32,
    ),
    "bias, groups, normalised": (
        RouteSpec(
            k=64, selection="expert_choice", capacity=9, score="sigmoid", groups=8, groups_kept=3, normalize=True
        ),
        np.float32,
    ),
    "threshold": (
        RouteSpec(k=5, selection="expert_choice", capacity=20, score="identity", threshold=-0.2, scale=2.0),
        ml_dtypes.bfloat16,
    ),
    "share of the largest": (
        RouteSpec(k=16, selection="expert_choice", capacity=9, relative_threshold=0.5, normalize=True),
        np.float32,
    ),
}


def check(spec: RouteSpec, logits_of_calls: list[np.ndarray], bias: np.ndarray | None = None) -> None:
    experts, dtype = spec.k, logits_of_calls[0].dtype
    biases = [] if bias is None else [bias]
    problem = RouteProblem(spec, experts, dtype.name, biased=bias is not None)
    score = build(score_tokens(problem))
    take, weigh = build(take_tokens(problem)), build(weigh_tokens(problem))
    for logits in logits_of_calls:
        tokens = len(logits)
        keys = score(logits, *biases, np.zeros((experts, tokens), np.uint32))
        taken = take(keys, np.full((tokens, experts), -7, np.int32))
        weights, ids = weigh.outputs(2, logits, taken, np.zeros((tokens, experts), dtype), np.zeros_like(taken))
        expected_weights, expected_ids = semantics.route(spec, logits, bias)
        np.testing.assert_array_equal(ids, expected_ids)
        np.testing.assert_allclose(
            weights.astype(np.float32), expected_weights.astype(np.float32), rtol=1e-5, atol=1e-6
        )


@thinned("name", ROUTERS, 5)
def test_experts_take_their_best_tokens(name):
    spec, dtype = ROUTERS[name]
    bias = RANDOM.standard_normal(spec.k, np.float32) if spec.groups > 1 else None
    check(spec, [RANDOM.standard_normal((tokens, spec.k)).astype(dtype) for tokens in (0, 1, 64)], bias)


def test_ties_go_to_the_lower_token_and_what_is_no_number_comes_last():
    spec = RouteSpec(k=4, selection="expert_choice", capacity=40, score="identity")
    ties = RANDOM.integers(-1, 2, (700, 4)).astype(np.float32)
    ties[::5] *= -1  # zeros of both signs
    odd = RANDOM.choice(np.array([np.nan, np.inf, -np.inf, 0, 1], np.float32), (90, 4))
    check(spec, [ties, np.zeros((50, 4), np.float32), odd, np.full((50, 4), np.nan, np.float32)])


def test_what_experts_cannot_choose_from_has_a_reason():
    spec = RouteSpec(k=4, selection="expert_choice", capacity=2)
    assert expert_choice.why_not(spec, 1024, "float32") is None
    assert "1025 experts" in expert_choice.why_not(spec, 1025, "float32")
    assert "selection is topk" in expert_choice.why_not(RouteSpec(k=4), 8, "float32")
    assert "float64" in expert_choice.why_not(spec, 8, "float64")
    made_up = dataclasses.replace(spec, score="cubed")
    assert "score 'cubed'" in expert_choice.why_not(made_up, 8, "float32")
