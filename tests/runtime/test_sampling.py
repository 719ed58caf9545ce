from __future__ import annotations

import numpy as np
import pytest

from moec.common.errors import MoecError
from moec.runtime import sampling
from moec.runtime.sampling import Sampling
from moec.runtime.token_weights import WHOLE, weights

LOGITS = np.log(np.array([0.1, 0.4, 0.2, 0.3])).astype(np.float32)
LIKELY = weights(LOGITS, 1.0)
NOTHING_SEEN = np.zeros(4, bool)


def left(likely: np.ndarray) -> list[int]:
    return np.flatnonzero(likely).tolist()


@pytest.mark.parametrize("temperature", [0.2, 1.0, 3.0])
def test_weights_are_the_softmax_in_whole_numbers(temperature):
    logits = np.random.default_rng(0).normal(size=3000).astype(np.float32) * 3
    actual = weights(logits, temperature)
    expected = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
    assert actual.dtype == np.int64 and actual.max() == WHOLE
    np.testing.assert_allclose(actual / WHOLE, expected, rtol=5e-9, atol=1 / WHOLE)


def test_weights_of_infinities():
    inf = np.float32(np.inf)
    assert weights(np.array([0, -inf, -1e38], np.float32), 1.0).tolist() == [WHOLE, 0, 0]
    assert weights(np.array([inf, 0, inf], np.float32), 1.0).tolist() == [WHOLE, 0, WHOLE]
    assert weights(np.array([-inf, -inf], np.float32), 1e-320).tolist() == [WHOLE, WHOLE]


def test_top_k_leaves_the_k_largest_and_of_equal_ones_the_first():
    assert sampling.top_k(LOGITS, 2).tolist() == [1, 3]
    assert sampling.top_k(LOGITS, 0).tolist() == sampling.top_k(LOGITS, 9).tolist() == [0, 1, 2, 3]
    assert sampling.top_k(np.array([1.0, 2.0, 1.0, 1.0]), 2).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("p", "kept"), [(0.01, [1]), (0.39, [1]), (0.41, [1, 3]), (0.71, [1, 2, 3]), (1.0, [0, 1, 2, 3])]
)
def test_top_p_leaves_the_fewest_that_reach_it(p, kept):
    assert left(sampling.top_p(LOGITS, LIKELY, p)) == kept


@pytest.mark.parametrize(
    ("p", "kept"), [(0.0, [0, 1, 2, 3]), (0.26, [1, 2, 3]), (0.74, [1, 3]), (0.76, [1]), (1.0, [1])]
)
def test_min_p_leaves_what_is_likely_enough_beside_the_likeliest(p, kept):
    assert left(sampling.min_p(LIKELY, p)) == kept


@pytest.mark.parametrize("p", [0.05, 0.5, 0.95, 0.999])
def test_top_p_of_many_is_what_sorting_all_of_them_says(p):
    logits = np.random.default_rng(0).normal(size=3000).astype(np.float32) * 3
    likely = weights(logits, 1.0)
    order = np.argsort(-logits, kind="stable")
    count = np.searchsorted(np.cumsum(likely[order]) / likely.sum(), p) + 1
    assert left(sampling.top_p(logits, likely, p)) == sorted(order[:count].tolist())


def test_a_repetition_penalty_makes_what_was_seen_less_likely():
    seen = np.array([True, True, False, False])
    actual = sampling.repetition_penalty(np.array([2.0, -2.0, 2.0, -2.0]), seen, 2.0)
    assert actual.tolist() == [1.0, -4.0, 2.0, -2.0]


def test_draws_follow_probabilities():
    random = np.random.default_rng(0)
    counts = np.bincount([sampling.draw(LIKELY, random.random()) for _ in range(4000)], minlength=4)
    np.testing.assert_allclose(counts / 4000, np.exp(LOGITS), atol=0.03)
    only = weights(np.array([-np.inf, 0.0, -np.inf], np.float32), 1.0)
    assert {sampling.draw(only, random.random()) for _ in range(20)} == {1}


def test_nothing_is_drawn_beyond_what_is_left():
    assert sampling.draw(np.array([3, 5, 0]), 1.0 - 2**-53) == 1
    assert sampling.draw(np.array([WHOLE, WHOLE, 0]), 1.0) == 1
    assert sampling.draw(np.array([0, 5]), 0.0) == 1


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
        ({"repetition_penalty": 1e39}, "repetition_penalty is 1e[+]39; expected a number above 0"),
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
