"""Hidden units are matched by their values on tokens, and by their weights."""

from __future__ import annotations

import numpy as np

from moec.ir.dialect import ExpertsSpec
from moec.ir.expert_weights import ExpertWeights
from moec.passes.weights.similarity import evenly, matching_units, output_similarity, outputs_of

from ..stored_weights import D, E, F, expert_arrays, experts_model, last_moec_node

SPEC = ExpertsSpec("gelu", "none")
ORDER = np.random.default_rng(7).permutation(F)


def with_permuted(changed: dict[str, np.ndarray]) -> ExpertWeights:
    """Weights of a layer whose expert 1 is expert 0 with its units in another order, except for ``changed`` ones."""
    arrays = expert_arrays(SPEC)
    arrays["up"][1] = arrays["up"][0][ORDER]
    arrays["up_bias"][1] = arrays["up_bias"][0][ORDER]
    arrays["down"][1] = arrays["down"][0][:, ORDER]
    arrays["down_bias"][1] = arrays["down_bias"][0]
    for name, array in changed.items():
        arrays[name][1] = array
    return ExpertWeights(last_moec_node(experts_model(SPEC, arrays)))


def test_units_are_matched_by_their_weights_where_no_token_tells():
    first, second = matching_units(with_permuted({}), [0, 1], np.zeros((0, D), np.float32))
    np.testing.assert_array_equal(first, np.arange(F))
    np.testing.assert_array_equal(ORDER[second], np.arange(F))


def test_units_are_matched_by_what_they_are_where_weights_do_not_tell():
    """Tokens have half of the inputs; weights of the others, and of what becomes of the units, are something else."""
    random = np.random.default_rng(8)
    up = expert_arrays(SPEC)["up"][0][ORDER]
    up[:, D // 2 :] = 5 * random.normal(size=(F, D // 2))
    weights = with_permuted({"up": up, "down": random.normal(size=(D, F))})
    tokens = random.normal(size=(200, D)).astype(np.float32)
    tokens[:, D // 2 :] = 0
    _, second = matching_units(weights, [0, 1], tokens)
    np.testing.assert_array_equal(ORDER[second], np.arange(F))


def test_outputs_of_copies_are_equal_and_zeros_are_like_nothing():
    weights = with_permuted({})
    alike = output_similarity(outputs_of(weights, np.random.default_rng(0).normal(size=(20, D)).astype(np.float32)))
    assert alike.shape == (E, E) and alike[0, 1] == 1 and (alike[0, 2:] < 0.9).all()
    assert not output_similarity(np.zeros((2, 3, 4), np.float32)).any()


def test_rows_are_chosen_evenly():
    rows = np.arange(10)[:, None]
    assert evenly(rows, 4)[:, 0].tolist() == [0, 3, 6, 9]
    assert evenly(rows, 10) is rows
