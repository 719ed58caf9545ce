"""Arrays of a profile that do not fit its head, or hold impossible numbers, are refused when they are read."""

from __future__ import annotations

import numpy as np
import pytest

from moec.common.errors import MoecError
from moec.profiles import Profile
from moec.profiles.file import write_profile

from .test_file import HEAD, LAYER

KEY = LAYER.key
RIGHT = {"count": np.array([1, 2]), "rows/0": np.ones((3, 2)), "row_gates/0": np.ones(3), "moment_in/1": np.ones(3)}


def read(path, name: str, **changes: np.ndarray):
    arrays = {**RIGHT, **{name.replace("__", "/"): array for name, array in changes.items()}}
    write_profile(path, HEAD, [(f"{KEY}/{name}", array) for name, array in arrays.items()])
    return Profile.read(path).array(name)


@pytest.mark.parametrize("name", RIGHT)
def test_what_fits_is_read(name, tmp_path):
    np.testing.assert_array_equal(read(tmp_path / "p", f"{KEY}/{name}"), RIGHT[name])


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("count", np.ones(3), r"is \[3\]; expected \[2\]"),
        ("count", np.ones((2, 1)), r"is \[2, 1\]; expected \[2\]"),
        ("count", np.array([1, -1]), "holds numbers below 0"),
        ("count", np.array([1, np.nan]), "holds numbers that are not finite"),
        ("count", np.array(["a", "b"]), "is of the type <U1; expected numbers"),
        ("count", np.array([True, False]), "is of the type bool; expected numbers"),
        ("moment_in__1", np.full(3, np.inf), "holds numbers that are not finite"),
        ("error__int8", np.array([[1, np.nan], [0, 0]]), "holds numbers that are not finite"),
        ("row_gates__0", np.ones(2), f"has 2 rows, and {KEY}/rows/0 3"),
        ("unheard_of", np.ones(2), "belongs to no layer of its head"),
    ],
)
def test_what_does_not_fit(name, array, message, tmp_path):
    with pytest.raises(MoecError, match=rf"p: the array {KEY}/.* {message}; the profile is damaged: make it anew"):
        read(tmp_path / "p", f"{KEY}/{name.replace('__', '/')}", **{name: array})


def test_errors_may_be_infinite(tmp_path):
    actual = read(tmp_path / "p", f"{KEY}/error/int8", error__int8=np.full((2, 2), np.inf))
    assert actual is not None and np.isinf(actual).all()
