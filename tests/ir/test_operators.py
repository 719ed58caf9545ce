"""Operators where numpy and ONNX part ways."""

from __future__ import annotations

import numpy as np
import pytest

from moec.ir.operators import layer_normalization, one_hot, rms_normalization, slice_


@pytest.mark.parametrize(
    ("start", "end", "step", "taken"),
    [
        (-1, -9, -1, [4, 3, 2, 1, 0]),
        (0, -9, -1, [0]),
        (-9, -9, -1, [0]),
        (2, 0, -1, [2, 1]),
        (9, 1, -2, [4, 2]),
        (1, 3, -1, []),
        (0, -1, 1, [0, 1, 2, 3]),
        (-9, 9, 2, [0, 2, 4]),
        (3, 3, 1, []),
    ],
)
def test_slices_take_what_onnx_says(start, end, step, taken):
    start, end, step = (np.array([n]) for n in (start, end, step))
    assert slice_(np.arange(5), start, end, None, step).tolist() == taken
    assert slice_(np.zeros((2, 0)), start, end, np.array([1]), step).shape == (2, 0)


def test_one_hot_counts_from_either_end():
    indices, depth, values = np.array([0, 2, -1, -3, 3, -4]), np.array(3), np.array([5, 7])
    on = [0, 2, 2, 0, None, None]  # outside of [-3, 3): none
    assert one_hot(indices, depth, values).tolist() == [[7 if n == place else 5 for n in range(3)] for place in on]


def test_normalisation_of_float16_takes_its_statistics_in_float32():
    x = np.random.default_rng(0).normal(300, 900, (3, 64)).astype(np.float16)  # their squares are beyond float16
    scale = np.linspace(-2, 2, 64).astype(np.float16)
    exact, root = x.astype(np.float64), np.sqrt(np.square(x.astype(np.float64)).mean(-1, keepdims=True))
    np.testing.assert_allclose(rms_normalization(x, scale), exact / root * scale, rtol=2e-3)
    y, mean, reciprocal = layer_normalization(x, scale)
    centred = exact - exact.mean(-1, keepdims=True)
    np.testing.assert_allclose(y, centred / centred.std(-1, keepdims=True) * scale, rtol=2e-3, atol=2e-3)
    assert y.dtype == np.float16 and mean.dtype == reciprocal.dtype == np.float32
