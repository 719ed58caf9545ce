"""How outputs are compared."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from moec.verify import ROUNDED_TOLERANCES, TOLERANCES, Case, Verification, compare


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_largest_differences_are_reported():
    difference = compare("y", floats(1.5, 8), floats(1, 10), tolerance=0.2)
    assert (difference.absolute, difference.relative) == (2.0, 0.5)
    assert difference.matches  # 2 is within 0.2 of the largest expected magnitude, 10
    assert not compare("y", floats(1.5, 8), floats(1, 10), tolerance=0.19).matches


def test_small_values_are_compared_absolutely():
    assert compare("y", floats(1e-6), floats(2e-6), tolerance=1e-5).matches
    assert compare("y", floats(1e-6), floats(0), tolerance=1e-5).relative == np.inf


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_must_be_the_same(value):
    assert compare("y", floats(value, 1), floats(value, 1), tolerance=0).matches
    assert not compare("y", floats(value, 1), floats(1, 1), tolerance=1e9).matches
    assert not compare("y", floats(1, 1), floats(value, 1), tolerance=1e9).matches


def test_integers_must_be_equal():
    assert compare("y", np.array([3]), np.array([3]), tolerance=1).matches
    assert not compare("y", np.array([3]), np.array([4]), tolerance=9).matches


def test_shape_and_type_must_be_equal():
    assert compare("y", floats(), floats(), tolerance=0).matches
    shorter = compare("y", floats(1), floats(1, 2), tolerance=1)
    assert (shorter.matches, shorter.note) == (False, "found float32[1], expected float32[2]")
    assert not compare("y", floats(1), np.array([1.0]), tolerance=1).matches


def test_half_precision_is_compared_in_full():
    one = np.array([1], ml_dtypes.bfloat16)
    assert compare("y", one + one, one, tolerance=0.5).absolute == 1.0


def test_a_verification_matches_when_every_case_that_ran_does():
    good, bad = compare("y", floats(1), floats(1), 0), compare("y", floats(1), floats(2), 0)
    not_run = Case({}, [], "onnxruntime cannot")
    assert Verification(0, [Case({}, [good]), not_run]).matches
    assert Verification(0, [Case({}, [good]), not_run]).failures == ["onnxruntime cannot"]
    assert not Verification(0, [Case({}, [good]), Case({}, [good, bad])]).matches


def test_narrower_floats_are_given_more_room():
    assert TOLERANCES["float32"] < TOLERANCES["float16"] < TOLERANCES["bfloat16"]


def test_the_norm_is_a_share_of_what_is_expected():
    expected = np.ones(100, np.float32)
    found = expected.copy()
    found[7] = 2  # one element is off by as much as it is
    assert compare("y", found, expected, 1).norm == pytest.approx(0.1)
    assert compare("y", expected, expected, 1).norm == 0
    assert compare("y", floats(1), floats(0), 1).norm == np.inf
    assert np.isnan(compare("y", floats(np.nan, 1), floats(1, 1), 1).norm)


def test_rounding_arithmetic_is_given_more_room():
    assert ROUNDED_TOLERANCES["float32"] == TOLERANCES["float32"] < ROUNDED_TOLERANCES["int8"]
