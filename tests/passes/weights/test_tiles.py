from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from moec.passes.weights.tiles import lower_factor, product

_DIGESTS = """
import hashlib, numpy as np
from moec.passes.weights.tiles import lower_factor, product
random = np.random.default_rng(0)
rows = random.normal(size=(900, 700))
for dtype in (np.float32, np.float64):
    found = rows.astype(dtype)
    square = product(np.ascontiguousarray(found.T), found)
    for array in (square, lower_factor(square)):
        print(hashlib.sha256(array.tobytes()).hexdigest())
"""


@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (64, 64, 64), (65, 130, 7), (3, 200, 129), (0, 5, 2), (5, 0, 2), (5, 2, 0)]
)
def test_products_are_those_of_numpy(shape) -> None:
    random, (rows, inner, columns) = np.random.default_rng(0), shape
    left, right = random.normal(size=(rows, inner)), random.normal(size=(inner, columns))
    actual = product(left, right)
    assert actual.shape == (rows, columns)
    np.testing.assert_allclose(actual, left @ right, atol=1e-12)


@pytest.mark.parametrize("size", [1, 63, 64, 65, 200])
def test_factors_are_those_of_cholesky(size) -> None:
    rows = np.random.default_rng(0).normal(size=(size + 10, size))
    matrix = rows.T @ rows + np.eye(size)
    np.testing.assert_allclose(lower_factor(matrix), np.linalg.cholesky(matrix), atol=1e-10)


@pytest.mark.parametrize("place", [0, 63, 64, 129])
def test_a_matrix_that_is_not_positive_has_no_factor(place) -> None:
    matrix = np.eye(130)
    matrix[place, place] = -1
    with pytest.raises(np.linalg.LinAlgError):
        lower_factor(matrix)


def test_bits_are_the_same_for_any_number_of_threads() -> None:
    actual = set()
    for threads in "14":
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": threads, "OMP_NUM_THREADS": threads}
        command = [sys.executable, "-c", _DIGESTS]
        actual.add(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
    assert len(actual) == 1
