"""The route kernel against the numpy semantics."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moec.common.errors import UnsupportedError
from moec.ir import semantics
from moec.ir.dialect import RouteSpec, choices
from moec.ir.semantics import route
from moec.targets.cpu.kernels.route import why_not

from ...products import thinned
from .one_node import compile_node

E = 12
SPECS = {
    "softmax": RouteSpec(3, normalize=True, scale=2.5),
    "softmax_of_selected": RouteSpec(3, score="softmax_topk"),
    "biased_sigmoid_in_groups": RouteSpec(
        4, score="sigmoid", normalize=True, normalize_epsilon=1e-20, groups=4, groups_kept=2, group_score="sum_top2"
    ),
    "best_groups": RouteSpec(2, groups=3, groups_kept=1, group_score="max"),
    "groups_of_one": RouteSpec(2, groups=12, groups_kept=3, group_score="sum_top2"),
    "sigmoid_of_selected": RouteSpec(3, score="sigmoid_topk", normalize=True),
    "sum_with_a_floor": RouteSpec(2, score="sigmoid", normalize=True, normalize_floor=1.2),
    "sparsemixer": RouteSpec(2, score="sparsemixer", jitter=0.1),
    "softplus": RouteSpec(1, score="softplus"),
    "sqrt_softplus": RouteSpec(2, score="sqrt_softplus", normalize=True),
    "relu_above_threshold": RouteSpec(3, score="relu", threshold=0.5, normalize=True, normalize_epsilon=1e-6),
    "share_of_the_largest": RouteSpec(4, relative_threshold=0.5, normalize=True, scale=2.5),
    "share_above_threshold": RouteSpec(4, score="identity", threshold=-1.0, relative_threshold=0.3),
    "only_the_largest": RouteSpec(3, score="softmax_topk", relative_threshold=1.0, normalize=True),
    "share_of_all": RouteSpec(E, selection="all", relative_threshold=0.2),
    "share_and_capacity": RouteSpec(3, relative_threshold=0.6, capacity=2),
    "identity_all": RouteSpec(E, score="identity", selection="all"),
    "every_expert": RouteSpec(E, normalize=True),
    "capacity": RouteSpec(2, capacity=3),
}
BIASED = {"biased_sigmoid_in_groups", "capacity"}


def biases() -> np.ndarray:
    return np.random.default_rng(1).standard_normal(E).astype(np.float32)


@functools.cache
def compiled(name: str):
    constants = {"correction_bias": biases()} if name in BIASED else {}
    return compile_node("Route", {"logits": np.zeros((1, E), np.float32)}, constants, SPECS[name])


@st.composite
def logits(draw: st.DrawFn) -> np.ndarray:
    """Random logits; half of the time only whole numbers, so that there are ties, and all alike every so often."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = random.standard_normal((draw(st.sampled_from([0, 1, 7, 130])), E)) * 2
    values = draw(st.sampled_from([values, np.round(values), np.zeros_like(values)]))
    return values.astype(np.float32)


@thinned("name", SPECS, 2)
@settings(max_examples=20, deadline=None)
@given(logits=logits())
def test_route_agrees_with_the_semantics(name: str, logits: np.ndarray) -> None:
    weights, experts = compiled(name)(logits=logits)
    expected_weights, expected_experts = route(SPECS[name], logits, biases() if name in BIASED else None)
    np.testing.assert_array_equal(experts, expected_experts)
    np.testing.assert_allclose(weights, expected_weights, rtol=2e-6, atol=1e-6)


def test_minus_infinity_and_nan_are_chosen_last_and_by_lower_id() -> None:
    logits = np.full((2, E), -np.inf, np.float32)
    logits[0, 5] = 1
    logits[1, 3], logits[1, 7] = np.nan, 2
    _, experts = compiled("softmax_of_selected")(logits=logits)
    assert experts[0].tolist() == [5, 0, 1]
    assert experts[1].tolist() == [7, 0, 1]


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_share_of_the_largest_with_ties_and_numbers_that_are_none(share: float) -> None:
    spec, nan, infinity = RouteSpec(5, score="identity", relative_threshold=share), np.nan, np.inf
    odd = [[0] * 6, [nan, 1, nan, 0.4, nan, 1], [nan] * 6, [infinity, 1, infinity, 0, 1, -9], [1, 2, 4, -4, -1, -8]]
    logits = np.full((len(odd), E), nan, np.float32)
    logits[:, :6] = odd
    weights, experts = compile_node("Route", {"logits": logits}, {}, spec)(logits=logits)
    expected_weights, expected_experts = route(spec, logits)
    np.testing.assert_array_equal(experts, expected_experts)
    np.testing.assert_array_equal(weights, expected_weights)
    assert (experts == -1).any() and (np.isnan(weights) & (experts >= 0)).any()


@pytest.mark.parametrize("name", ["biased_sigmoid_in_groups", "softmax_of_selected", "sigmoid_of_selected"])
def test_experts_that_take_the_places_of_others(name: str) -> None:
    random, biased = np.random.default_rng(2), {"correction_bias": biases()} if name in BIASED else {}
    logits = random.standard_normal((200, E)).astype(np.float32)
    tolerance = np.array([0, 0.3, 0.1, 0, 1, 0, 0, 0.5, 0.3, 0, 0.2, 0.3], np.float32)
    weights, experts = compile_node("Route", {"logits": logits}, {**biased, "tolerance": tolerance}, SPECS[name])(
        logits=logits
    )
    expected_weights, expected_experts = route(SPECS[name], logits, *biased.values() or [None], tolerance)
    np.testing.assert_array_equal(experts, expected_experts)
    np.testing.assert_allclose(weights, expected_weights, rtol=2e-6, atol=1e-6)
    assert (experts != route(SPECS[name], logits, *biased.values())[1]).mean() > 0.05


def test_half_precision_logits_are_routed_in_float32() -> None:
    logits = np.random.default_rng(0).standard_normal((9, E)).astype(np.float16)
    run = compile_node("Route", {"logits": logits}, {}, SPECS["softmax"])
    weights, experts = run(logits=logits)
    expected_weights, expected_experts = route(SPECS["softmax"], logits)
    assert weights.dtype == np.float16
    np.testing.assert_array_equal(experts, expected_experts)
    np.testing.assert_allclose(weights, expected_weights, rtol=2e-3)


def test_a_score_that_only_the_dialect_and_its_semantics_know_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, logits = RouteSpec(2, score="cubed"), np.ones((1, E), np.float32)
    monkeypatch.setitem(semantics.SCORES, "cubed", lambda x: x**3)
    assert route(spec, logits)[0].tolist() == [[1, 1]]
    with pytest.raises(UnsupportedError, match=r"block.*score 'cubed'; the kernel has identity, relu, "):
        compile_node("Route", {"logits": logits}, {}, spec)


@pytest.mark.parametrize("score", choices(RouteSpec, "score"))
def test_every_score_of_the_dialect_is_routed(score: str) -> None:
    assert why_not(RouteSpec(2, score=score)) is None


def test_expert_choice_is_refused_with_the_reason() -> None:
    with pytest.raises(UnsupportedError, match=r"block.*expert_choice lets experts choose among all tokens"):
        compile_node(
            "Route", {"logits": np.zeros((1, E), np.float32)}, {}, RouteSpec(E, selection="expert_choice", capacity=2)
        )
