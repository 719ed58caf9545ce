"""Rows of data that are held back: each eighth, where batches can be split, and never more than allowed."""

from __future__ import annotations

import numpy as np

from moec.common.specs import TensorSpec
from moec.tools.profiling.rows_apart import RowsApart, cut, most_positions, positions_of

FREE = [TensorSpec("ids", "int64", ("rows", "length")), TensorSpec("mask", "int64", ("rows", "length"))]
FIXED = [TensorSpec("ids", "int64", (4, "length")), TensorSpec("mask", "int64", (4, "length"))]


def batches(sizes: list[int], length: int = 3) -> list[dict[str, np.ndarray]]:
    """Make batches of these numbers of rows; each row holds its number."""
    numbers = np.split(np.arange(sum(sizes))[:, None] * np.ones(length, np.int64), np.cumsum(sizes)[:-1])
    return [{"ids": of_batch, "mask": of_batch} for of_batch in numbers]


def rows(batches: list[dict[str, np.ndarray]]) -> list[int]:
    return [int(row[0]) for batch in batches for row in batch["ids"]]


def test_each_eighth_row_is_held_back_whatever_the_batches():
    for sizes in ([20], [5, 5, 10], [1] * 20):
        apart = RowsApart(FREE)
        seen = [kept for batch in batches(sizes) if (kept := apart.split(batch)) is not None]
        assert rows(apart.held_back) == [7, 15]
        assert rows(apart.again) == [0, 8, 16]
        assert rows(seen) == [row for row in range(20) if row not in (7, 15)]


def test_few_rows_are_all_measured_on():
    apart = RowsApart(FREE)
    (batch,) = batches([7])
    assert apart.split(batch) is batch
    assert not apart.held_back


def test_batches_of_a_fixed_size_are_held_back_whole():
    apart = RowsApart(FIXED)
    seen = [apart.split(batch) for batch in batches([4] * 9)]
    assert [at for at, batch in enumerate(seen) if batch is None] == [7]
    assert rows(apart.held_back) == [28, 29, 30, 31]


def test_inputs_of_unequal_lengths_are_held_back_whole():
    apart = RowsApart(FREE)
    seen = [apart.split(batch | {"mask": np.ones((2, 3))}) for batch in batches([1] * 8)]
    assert [at for at, batch in enumerate(seen) if batch is None] == [7]


def test_no_more_is_held_back_than_enough():
    apart = RowsApart(FREE, 6)
    for batch in batches([8] * 4):
        apart.split(batch)
    assert rows(apart.held_back) == [7, 15]


def test_outputs_of_what_is_set_apart_fit_in_memory():
    assert [most_positions(classes) for classes in (0, 96, 49152, 1 << 30)] == [4096, 4096, 1365, 1]


def test_batches_are_cut_to_positions_and_keep_a_row():
    given = batches([2, 2])
    assert rows(cut(given, 9)) == [0, 1, 2]
    assert rows(cut(given, 1)) == [0]
    assert rows(cut(given, 99)) == [0, 1, 2, 3]
    assert positions_of(cut(given, 9)) == 9
