"""Operators where numpy and ONNX part ways."""

from __future__ import annotations

import numpy as np
import pytest

from moec.ir.operators import one_hot, slice_


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
