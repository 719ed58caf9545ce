"""The tokens with which two texts begin alike."""

from __future__ import annotations

import numpy as np
import pytest

from moec.runtime.common_tokens import common_tokens


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([], [], 0),
        ([], [1], 0),
        ([2], [1], 0),
        ([1, 2, 3], [1, 2], 2),
        ([1, 2], [1, 2, 3], 2),
        ([1, 2, 3, 4], [1, 5, 3, 4], 1),
        ([1, 2, 3], np.array([1, 2, 3]), 3),
    ],
)
def test_tokens_up_to_the_first_difference_or_the_end_of_one_text_are_common(first, second, expected):
    assert common_tokens(first, second) == common_tokens(second, first) == expected
