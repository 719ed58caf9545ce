"""Appending to pages on a GPU: the place is read in memory, so no number there may lead outside of the pages."""

from __future__ import annotations

import numpy as np
import pytest

from moec.targets.gpu.kernels.append import append
from moec.targets.tvm.lowering.paged_tensors import AppendProblem

from .kernel_runner import build

PAGES, PAGE, NEW = 3, 4, 2
FAR = 1 << 62


@pytest.fixture(scope="module")
def after_the_end():
    return build(append(AppendProblem((2,), (4,), "float32", "float16")))


@pytest.fixture(scope="module")
def at_places():
    return build(append(AppendProblem((2,), (4,), "float32", "float16", "int32")))


@pytest.fixture(scope="module")
def by_entry():
    return build(append(AppendProblem((1, 2), (4,), "float32", "float16", "int64", by_entry=True)))


def written(starts: list[int], length: int) -> np.ndarray:
    """The pages [pages, 2, page, 4] in which row i of sequence b has the number 10 * b + i + 1 behind its start."""
    rows = np.zeros((2, PAGES * PAGE, 4), np.float16)
    for b, start in enumerate(starts):
        for i in range(NEW):
            if 0 <= start + i < min(length, PAGES * PAGE):
                rows[b, start + i] = 10 * b + i + 1
    return np.ascontiguousarray(rows.reshape(2, PAGES, PAGE, 4).transpose(1, 0, 2, 3))


NUMBERS = np.array([[[10 * b + i + 1] * 4 for i in range(NEW)] for b in range(2)], np.float32)
EMPTY = np.zeros((PAGES, 2, PAGE, 4), np.float16)


@pytest.mark.parametrize("start", [0, 3, 7, 10, 11, 12, -1, FAR, -FAR])
def test_new_entries_go_where_memory_says_and_nowhere_else(after_the_end, start):
    pages = after_the_end(np.array([start]), NUMBERS, EMPTY)
    np.testing.assert_array_equal(pages, written([start, start], FAR))


@pytest.mark.parametrize(("starts", "length"), [((3, 7), 12), ((3, 7), 8), ((-1, 11), 12), ((10, 11), FAR)])
def test_each_sequence_has_its_own_place_before_the_length(at_places, starts, length):
    pages = at_places(np.array([length]), np.array(starts, np.int32), NUMBERS, EMPTY)
    np.testing.assert_array_equal(pages, written(list(starts), length))


def test_each_entry_has_its_own_place_in_all_pages(by_entry):
    """Entries are written in any order; places outside of the pages are skipped, and what has no place stays."""
    places, new = [7, 0, PAGES * PAGE, -1, 11, FAR, -FAR], np.arange(1, 8, dtype=np.float32)
    held = by_entry(
        np.array(places), np.tile(new[None, None, :, None], (1, 2, 1, 4)), EMPTY[:, :1].repeat(2, 1)[:, None]
    )
    rows = np.zeros(PAGES * PAGE)
    rows[[7, 0, 11]] = 1, 2, 5
    np.testing.assert_array_equal(held[:, 0, 0, :, 0].ravel(), rows)
    np.testing.assert_array_equal(held, np.broadcast_to(held[:, :, :1, :, :1], held.shape))
