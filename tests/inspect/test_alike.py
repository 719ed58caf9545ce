"""Similar names, numbers and rows are shown once."""

from __future__ import annotations

import pytest

from moec.inspect.alike import merged, names, ranges


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ([3], "3"),
        ([2, 0, 1], "0-2"),
        ([0, 1, 1, 3], "0-1, 3"),
        (range(0, 12, 2), "0, 2, 4, 6, 8, 10"),
        (range(0, 14, 2), "0...12"),
    ],
)
def test_numbers_become_ranges(numbers, text):
    assert ranges(numbers) == text


@pytest.mark.parametrize(
    ("numbered", "text"),
    [
        (["x"], "x"),
        (["key_1", "key_0", "value_0", "value_1"], "key_{0-1}, value_{0-1}"),
        (["a.0.b.3", "a.1.b.3"], "a.{0-1}.b.3"),
        (["a_01", "a_01"], "a_01"),
        (["topk", "topk_1", "topk_2"], "topk, topk_{1-2}"),
        (["a", "b", "c", "d", "e", "f"], "a, b, c, d and 2 more"),
        (["7", "8", "10"], "{7-8, 10}"),
    ],
)
def test_names_that_differ_by_numbers_stand_once(numbered, text):
    assert names(numbered) == text


def test_rows_of_equal_cells_stand_once_with_their_places():
    assert merged([("a", "b"), ("c", "d"), ("a", "b")]) == [([0, 2], ("a", "b")), ([1], ("c", "d"))]
    assert merged([]) == []
