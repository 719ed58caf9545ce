"""The vectorised semantics of routing against loops that follow RouteSpec word by word."""

import math

import numpy as np
import pytest

from moec.ir.dialect import RouteSpec
from moec.ir.semantics import route

INFINITY = float("inf")


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def softmax(row: list[float]) -> list[float]:
    exponentials = [math.exp(x - max(row)) for x in row]
    return [x / sum(exponentials) for x in exponentials]


ELEMENTWISE = {
    "sigmoid": sigmoid,
    "softplus": lambda x: math.log1p(math.exp(x)),
    "sqrt_softplus": lambda x: math.sqrt(math.log1p(math.exp(x))),
    "relu": lambda x: max(x, 0.0),
    "identity": lambda x: x,
    "softmax_topk": lambda x: x,
    "sigmoid_topk": lambda x: x,
}


def best(scores: list[float], count: int) -> list[int]:
    return sorted(range(len(scores)), key=lambda index: (-scores[index], index))[:count]


def route_one_token(spec: RouteSpec, logits: list[float], bias: list[float]) -> tuple[list[float], list[int]]:
    """Top-k routing of a single token, without capacity."""
    scores = softmax(logits) if spec.score == "softmax" else [ELEMENTWISE[spec.score](x) for x in logits]
    choice = [s + b for s, b in zip(scores, bias, strict=True)]
    if spec.groups > 1:
        size = len(choice) // spec.groups
        groups = [choice[start : start + size] for start in range(0, len(choice), size)]
        strength = [max(g) if spec.group_score == "max" else sum(sorted(g)[-2:]) for g in groups]
        kept = best(strength, spec.groups_kept)
        choice = [c if index // size in kept else -INFINITY for index, c in enumerate(choice)]
    ids = best(choice, spec.k)
    weights = [scores[i] for i in ids]
    if spec.score == "softmax_topk":
        weights = softmax(weights)
    if spec.score == "sigmoid_topk":
        weights = [sigmoid(w) for w in weights]
    if spec.threshold is not None:
        ids = [i if w > spec.threshold else -1 for i, w in zip(ids, weights, strict=True)]
        weights = [w if i >= 0 else 0.0 for i, w in zip(ids, weights, strict=True)]
    least = spec.relative_threshold * max(map(abs, weights))
    ids = [i if abs(w) >= least else -1 for i, w in zip(ids, weights, strict=True)]
    weights = [w if i >= 0 else 0.0 for i, w in zip(ids, weights, strict=True)]
    total = max(sum(weights) + spec.normalize_epsilon, spec.normalize_floor or -INFINITY)
    if spec.normalize:
        weights = [w / total if i >= 0 else 0.0 for i, w in zip(ids, weights, strict=True)]
    return [w * spec.scale for w in weights], ids


ROUTERS = [
    RouteSpec(k=2),
    RouteSpec(k=3, normalize=True, normalize_epsilon=1e-3, scale=2.5),
    RouteSpec(k=2, score="sigmoid", normalize=True),
    RouteSpec(k=2, score="softmax_topk"),
    RouteSpec(k=8, score="softmax_topk", scale=0.5),
    RouteSpec(k=3, score="sigmoid_topk", normalize=True),
    RouteSpec(k=2, score="sigmoid", normalize=True, normalize_floor=1.2),
    RouteSpec(k=2, score="softplus"),
    RouteSpec(k=2, score="sqrt_softplus", normalize=True),
    RouteSpec(k=4, score="relu"),
    RouteSpec(k=1, score="identity"),
    RouteSpec(k=3, score="sigmoid", groups=4, groups_kept=2, group_score="sum_top2"),
    RouteSpec(k=2, groups=2, groups_kept=1),
    RouteSpec(k=4, threshold=0.15, normalize=True),
    RouteSpec(k=4, score="sigmoid", threshold=0.6),
    RouteSpec(k=4, score="sigmoid", threshold=0.4, relative_threshold=0.7, normalize=True, scale=2.5),
    RouteSpec(k=3, relative_threshold=0.5),
    RouteSpec(k=6, score="identity", relative_threshold=0.4),
    RouteSpec(k=4, score="softmax_topk", relative_threshold=1.0, normalize=True),
]


@pytest.mark.parametrize("spec", ROUTERS, ids=str)
@pytest.mark.parametrize("tokens", [0, 1, 7, 64])
@pytest.mark.parametrize("biased", [False, True])
def test_route_is_what_the_loop_computes(spec: RouteSpec, tokens: int, biased: bool) -> None:
    generator = np.random.default_rng(tokens)
    logits = generator.normal(size=(tokens, 8)) * 2
    bias = generator.normal(size=8) if biased else np.zeros(8)
    weights, ids = route(spec, logits, bias if biased else None)
    assert weights.shape == ids.shape == (tokens, spec.k)
    assert weights.dtype == np.float64 and ids.dtype == np.int32
    for token in range(tokens):
        expected_weights, expected_ids = route_one_token(spec, logits[token].tolist(), bias.tolist())
        assert ids[token].tolist() == expected_ids
        np.testing.assert_allclose(weights[token], expected_weights, rtol=1e-12)


def test_sigmoids_that_are_equal_tie_and_their_logits_do_not() -> None:
    logits = np.array([[100.0, 200.0]], np.float32)
    assert route(RouteSpec(k=1, score="sigmoid"), logits)[1].tolist() == [[0]]
    assert route(RouteSpec(k=1, score="sigmoid_topk"), logits)[1].tolist() == [[1]]


def test_correction_bias_moves_the_choice_and_not_the_weight() -> None:
    logits = np.array([[1.0, 0.0, -1.0]])
    weights, ids = route(RouteSpec(k=1, score="sigmoid"), logits, np.array([0.0, 0.0, 10.0]))
    assert ids.tolist() == [[2]]
    np.testing.assert_allclose(weights, [[sigmoid(-1)]])


@pytest.mark.parametrize(
    ("tolerance", "chosen"),
    [
        ([0.0] * 6, [0, 1, 2]),  # all are in memory
        ([0.9] * 6, [0, 1, 2]),  # none is
        ([0.5, 0.5, 0.5, 0, 0, 0], [0, 4, 3]),  # the last slot comes first, and the first choice stays
        ([0.5, 0.39, 0.39, 0, 0, 0], [0, 1, 3]),  # 0.1 is 0.6 of 1/6, and half of 0.2
        ([0, 0.5, 0, 0, 0, 0], [0, 3, 2]),
        ([0, 0.1, 0.1, 0.1, 0, 0], [0, 1, 2]),
        ([0, 0, 1, 1, 1, 0], [0, 1, 5]),
    ],
)
def test_experts_without_a_tolerance_take_the_places_of_those_with_one(
    tolerance: list[float], chosen: list[int]
) -> None:
    shares = np.array([0.3, 0.2, 1 / 6, 0.11, 0.105, 0.01])
    for score, normalize in (("softmax", False), ("softmax_topk", False), ("identity", True)):
        logits = np.log(shares / shares.sum())[None] if score != "identity" else shares[None]
        weights, ids = route(RouteSpec(k=3, score=score, normalize=normalize), logits, None, np.array(tolerance))
        assert ids.tolist() == [chosen], score
        of_chosen = shares[chosen] / (shares.sum() if score == "softmax" else shares[chosen].sum())
        np.testing.assert_allclose(weights, [of_chosen])


def test_experts_of_groups_that_are_not_kept_take_no_places() -> None:
    spec, logits = RouteSpec(k=2, groups=2, groups_kept=1), np.array([[3.0, 2.0, 0.0, 1.9, 1.9, 1.9]])
    assert route(spec, logits, None, np.array([0, 0.5, 0, 0, 0, 0]))[1].tolist() == [[0, 1]]
    assert route(spec, logits, None, np.array([0, 1.0, 0, 0, 0, 0]))[1].tolist() == [[0, 2]]


def test_equal_scores_go_to_the_lower_id() -> None:
    _, ids = route(RouteSpec(k=3), np.array([[1.0, 2.0, 2.0, 1.0, 1.0], [0.0] * 5]))
    assert ids.tolist() == [[1, 2, 0], [0, 1, 2]]


def test_equal_groups_go_to_the_lower_id() -> None:
    _, ids = route(RouteSpec(k=2, groups=3, groups_kept=1), np.zeros((1, 6)))
    assert ids.tolist() == [[0, 1]]


def test_nan_counts_as_minus_infinity_in_the_choice() -> None:
    weights, ids = route(RouteSpec(k=2, score="identity"), np.array([[np.nan, 1.0, -5.0], [np.nan, -np.inf, np.nan]]))
    assert ids.tolist() == [[1, 2], [0, 1]]
    np.testing.assert_array_equal(weights, [[1, -5], [np.nan, -np.inf]])


def test_a_nan_weight_never_passes_a_threshold() -> None:
    weights, ids = route(RouteSpec(k=1, score="identity", threshold=-np.inf), np.array([[np.nan]]))
    assert ids.tolist() == [[-1]] and weights.tolist() == [[0]]


@pytest.mark.parametrize(
    ("logits", "kept"),
    [
        ([1.0, 1.0, 1.0, 1.0], [0, 1, 2]),
        ([4.0, 2.0, 1.9, 0.0], [0, 1, -1]),
        ([2.0, -4.0, -1.9, -4.1], [-1, -1, 1, 3]),
        ([0.0, 0.0, 0.0, -1.0], [0, 1, 2]),
        ([INFINITY, 1.0, INFINITY, 0.0], [0, 2, -1]),
        ([math.nan, 1.0, math.nan, math.nan], [1, 0, 2]),
    ],
    ids=["equal", "half", "magnitudes", "zeros", "infinities", "nan"],
)
def test_weights_below_a_share_of_the_largest_are_dropped(logits: list[float], kept: list[int]) -> None:
    spec = RouteSpec(k=len(kept), score="identity", relative_threshold=0.5)
    weights, ids = route(spec, np.array([logits]))
    assert ids[0].tolist() == kept
    np.testing.assert_array_equal(weights[0], [0 if i < 0 else logits[i] for i in ids[0]])


def test_the_weights_that_are_left_sum_to_one() -> None:
    weights, ids = route(RouteSpec(k=3, normalize=True, relative_threshold=0.9), np.array([[0.0, 3.0, 3.0, 1.0]]))
    assert ids.tolist() == [[1, 2, -1]] and weights.tolist() == [[0.5, 0.5, 0]]


def test_nothing_above_the_threshold_leaves_zero_weights_also_when_normalising() -> None:
    weights, ids = route(RouteSpec(k=2, threshold=0.9, normalize=True), np.zeros((1, 4)))
    assert ids.tolist() == [[-1, -1]] and weights.tolist() == [[0, 0]]


def test_selecting_all_keeps_the_order_of_the_experts() -> None:
    logits = np.random.default_rng(0).normal(size=(5, 4))
    weights, ids = route(RouteSpec(k=4, selection="all"), logits)
    assert ids.tolist() == [[0, 1, 2, 3]] * 5
    np.testing.assert_allclose(weights, [softmax(row) for row in logits.tolist()], rtol=1e-12)


@pytest.mark.parametrize("tokens", [0, 1, 2, 9])
def test_expert_choice_takes_the_best_tokens_of_every_expert(tokens: int) -> None:
    logits = np.random.default_rng(1).normal(size=(tokens, 4))
    weights, ids = route(RouteSpec(k=4, selection="expert_choice", capacity=2), logits)
    assert weights.shape == ids.shape == (tokens, 4)
    scores = np.array([softmax(row) for row in logits.tolist()]).reshape(tokens, 4)
    for expert in range(4):
        taken = best(scores[:, expert].tolist(), 2)
        for token in range(tokens):
            assert ids[token, expert] == (expert if token in taken else -1)
            assert weights[token, expert] == pytest.approx(scores[token, expert] if token in taken else 0)


def test_expert_choice_ties_go_to_the_lower_token() -> None:
    _, ids = route(RouteSpec(k=2, selection="expert_choice", capacity=1), np.zeros((3, 2)))
    assert ids.tolist() == [[0, 1], [-1, -1], [-1, -1]]


@pytest.mark.parametrize("capacity", [1, 2, 3, 100])
def test_capacity_serves_first_choices_before_second_choices(capacity: int) -> None:
    logits = np.random.default_rng(2).normal(size=(9, 3))
    spec = RouteSpec(k=2, normalize=True)
    free_weights, free_ids = route(spec, logits)
    weights, ids = route(RouteSpec(k=2, normalize=True, capacity=capacity), logits)
    served = {0: 0, 1: 0, 2: 0}
    for slot in range(2):
        for token in range(9):
            expert = int(free_ids[token, slot])
            fits = served[expert] < capacity
            served[expert] += fits
            assert ids[token, slot] == (expert if fits else -1)
            assert weights[token, slot] == (free_weights[token, slot] if fits else 0)


def test_pairs_below_the_threshold_take_no_place_in_an_expert() -> None:
    logits = np.array([[0.0, -1.0], [2.0, -1.0]])
    _, ids = route(RouteSpec(k=1, score="identity", threshold=1.0, capacity=1), logits)
    assert ids.tolist() == [[-1], [0]]


def test_pairs_below_the_relative_threshold_take_no_place_in_an_expert() -> None:
    logits = np.array([[2.0, 0.5], [0.5, 2.0]])
    _, ids = route(RouteSpec(k=2, score="identity", relative_threshold=0.5, capacity=1), logits)
    assert ids.tolist() == [[0, -1], [1, -1]]


def sparse_mixer_one_token(logits: list[float], jitter: float, rounds: int) -> tuple[list[float], list[int]]:
    """The inference branch of ``sparsemixer`` in transformers' PhiMoE, for one token."""
    remaining, weights, ids = list(logits), [], []
    for _ in range(rounds):
        largest = max(remaining)
        chosen = remaining.index(largest)
        near = []
        for left, score in zip(remaining, logits, strict=True):
            masked = (largest - score) / max(abs(score), largest) > 2 * jitter
            near.append(-INFINITY if masked else left)
        weights.append(softmax(near)[chosen])
        ids.append(chosen)
        remaining[chosen] = -INFINITY
    return weights, ids


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("jitter", [0.01, 0.2, 0.6])
def test_sparse_mixer_is_that_of_phimoe(k: int, jitter: float) -> None:
    logits = np.random.default_rng(3).normal(size=(50, 6)) + 0.5
    weights, ids = route(RouteSpec(k=k, score="sparsemixer", jitter=jitter), logits)
    for token in range(50):
        expected_weights, expected_ids = sparse_mixer_one_token(logits[token].tolist(), jitter, k)
        assert ids[token].tolist() == expected_ids
        np.testing.assert_allclose(weights[token], expected_weights, rtol=1e-12)
