from __future__ import annotations

import numpy as np
import pytest

from moec.common.errors import MoecError
from moec.runtime import sampling
from moec.runtime.sampling import Sampling

LOGITS = np.log(np.array([0.1, 0.4, 0.2, 0.3]))
NOTHING_SEEN = np.zeros(4, bool)


def left(logits: np.ndarray) -> list[int]:
    return np.flatnonzero(logits > -np.inf).tolist()


def test_top_k_leaves_the_k_largest_and_of_equal_ones_the_first():
    assert left(sampling.top_k(LOGITS, 2)) == [1, 3]
    assert left(sampling.top_k(LOGITS, 0)) == left(sampling.top_k(LOGITS, 9)) == [0, 1, 2, 3]
    assert left(sampling.top_k(np.array([1.0, 2.0, 1.0, 1.0]), 2)) == [0, 1]


@pytest.mark.parametrize(
    ("p", "kept"), [(0.01, [1]), (0.39, [1]), (0.41, [1, 3]), (0.71, [1, 2, 3]), (1.0, [0, 1, 2, 3])]
)
def test_top_p_leaves_the_fewest_that_reach_it(p, kept):
    assert left(sampling.top_p(LOGITS, p)) == kept


@pytest.mark.parametrize(
    ("p", "kept"), [(0.0, [0, 1, 2, 3]), (0.26, [1, 2, 3]), (0.74, [1, 3]), (0.76, [1]), (1.0, [1])]
)
def test_min_p_leaves_what_is_likely_enough_beside_the_likeliest(p, kept):
    assert left(sampling.min_p(LOGITS, p)) == kept


@pytest.mark.parametrize("p", [0.05, 0.5, 0.95, 0.999])
def test_top_p_of_many_is_what_sorting_all_of_them_says(p):
    logits = np.random.default_rng(0).normal(size=3000) * 3
    order = np.argsort(-logits)
    count = np.searchsorted(np.cumsum(sampling.probabilities(logits)[order]), p) + 1
    assert left(sampling.top_p(logits, p)) == sorted(order[:count].tolist())


def test_a_repetition_penalty_makes_what_was_seen_less_likely():
    seen = np.array([True, True, False, False])
    actual = sampling.repetition_penalty(np.array([2.0, -2.0, 2.0, -2.0]), seen, 2.0)
    assert actual.tolist() == [1.0, -4.0, 2.0, -2.0]


def test_draws_follow_probabilities():
    random = np.random.default_rng(0)
    counts = np.bincount([sampling.draw(LOGITS, random) for _ in range(4000)], minlength=4)
    np.testing.assert_allclose(counts / 4000, np.exp(LOGITS), atol=0.03)
    only = np.array([-np.inf, 0.0, -np.inf])
    assert {sampling.draw(only, random) for _ in range(20)} == {1}


def test_nothing_is_drawn_beyond_what_is_left():
    class Highest:
        def random(self) -> float:
            return 1.0

    assert sampling.draw(np.array([0.0, 1.0, -np.inf]), Highest()) == 1  # type: ignore[arg-type]


def test_a_temperature_sharpens_or_flattens():
    def share(temperature: float) -> float:
        random, options = np.random.default_rng(0), Sampling(temperature=temperature)
        return float(np.mean([options.choose(LOGITS, NOTHING_SEEN, random) == 1 for _ in range(1000)]))

    assert share(0.3) > share(1.0) > share(3.0)
    assert abs(share(1.0) - 0.4) < 0.05


def test_without_a_temperature_the_likeliest_is_taken_and_of_equal_ones_the_first():
    random = np.random.default_rng(0)
    assert Sampling().choose(LOGITS, NOTHING_SEEN, random) == 1
    assert Sampling().choose(np.zeros(4), NOTHING_SEEN, random) == 0
    seen = np.array([False, True, False, False])
    assert Sampling(repetition_penalty=2.0).choose(LOGITS, seen, random) == 3
    assert random.random() == np.random.default_rng(0).random()


def test_options_apply_together():
    options = Sampling(temperature=1.0, top_k=3, top_p=0.7, min_p=0.2)
    random = np.random.default_rng(0)
    assert {options.choose(LOGITS, NOTHING_SEEN, random) for _ in range(200)} == {1, 3}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1.0; expected a number from 0 up"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"temperature": "hot"}, "temperature is 'hot' of type str; expected a number"),
        ({"temperature": 1.0, "top_p": 0}, "top_p is 0; expected a number above 0 to 1"),
        ({"temperature": 1.0, "top_p": 1.1}, "top_p is 1.1"),
        ({"temperature": 1.0, "min_p": -0.1}, "min_p is -0.1; expected a number from 0 to 1"),
        ({"temperature": 1.0, "top_k": -1}, "top_k is -1; expected a number from 0 up"),
        ({"temperature": 1.0, "top_k": 1.5}, "top_k is 1.5 of type float; expected a whole number"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0; expected a number above 0"),
        ({"seed": -1}, "seed is -1"),
        ({"top_k": 5}, "give a temperature above 0 with them"),
        ({"top_p": 0.9}, "give a temperature above 0 with them"),
        ({"min_p": 0.1}, "give a temperature above 0 with them"),
    ],
)
def test_numbers_that_cannot_be_are_refused(options, message):
    with pytest.raises(MoecError, match=message):
        Sampling(**options)


def test_logits_that_are_no_numbers_are_refused():
    with pytest.raises(MoecError, match="are not numbers"):
        Sampling().choose(np.array([0.0, np.nan]), np.zeros(2, bool), np.random.default_rng(0))
