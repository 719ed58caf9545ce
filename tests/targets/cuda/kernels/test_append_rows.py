"""Rows of int8 that a GPU appends, against the rounding of the interpreter, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from moec.ir.products import round_rows
from moec.targets.gpu.kernels.append_rows import append_rows, page_rows, unpage_rows
from moec.targets.tvm.lowering.paged_tensors import AppendProblem

from .kernel_runner import build, over

PAGES, PAGE, ROW, NEW = 3, 4, 37, 5
FAR = 1 << 62


@pytest.fixture(scope="module")
def widened():
    return build(unpage_rows(AppendProblem((2,), (ROW,), "float32", "int8")))


def numbers() -> np.ndarray:
    """Rows [2, NEW, ROW], some of which have extreme numbers."""
    rows = np.random.default_rng(0).standard_normal((2, NEW, ROW)).astype(np.float32)
    rows[0, 0, 3], rows[1, 0, 5] = np.inf, np.nan
    rows[0, 1], rows[1, 1] = 0, 1e-42
    rows[0, 2, 36], rows[1, 2, 0] = 3e38, -1000
    return rows


def empty() -> np.ndarray:
    return np.zeros((PAGES, 2, PAGE * (ROW + 2)), np.int8)


def expected(places: list[list[int]]) -> np.ndarray:
    """Rounded rows [2, PAGES * PAGE, ROW]: those of head h at its ``places``, zeros elsewhere."""
    rounded, rows = round_rows(numbers()), np.zeros((2, PAGES * PAGE, ROW), np.float32)
    for head, own in enumerate(places):
        for entry, place in enumerate(own):
            if 0 <= place < PAGES * PAGE:
                rows[head, place] = rounded[head, entry]
    return rows


def all_rows(widened, pages: np.ndarray) -> np.ndarray:
    return widened(pages, np.full((2, PAGES * PAGE, ROW), 7, np.float32))


@pytest.mark.parametrize("start", [0, 3, 10, 12, -2, FAR, -FAR])
def test_rows_go_where_memory_says_with_the_bits_of_the_interpreter(widened, start):
    kernel = build(append_rows(AppendProblem((2,), (ROW,), "float32", "int8")))
    pages = kernel(np.array([start]), numbers(), empty())
    np.testing.assert_array_equal(all_rows(widened, pages), expected([[start + entry for entry in range(NEW)]] * 2))


def test_each_sequence_has_its_own_place_before_the_length(widened):
    kernel = build(append_rows(AppendProblem((2,), (ROW,), "float32", "int8", "int32")))
    pages = kernel(np.array([9]), np.array([2, 6], np.int32), numbers(), empty())
    np.testing.assert_array_equal(all_rows(widened, pages), expected([[2, 3, 4, 5, 6], [6, 7, 8, -1, -1]]))


def test_each_row_has_its_own_place_in_all_pages(widened):
    kernel = build(append_rows(AppendProblem((2,), (ROW,), "float32", "int8", "int64", by_entry=True)))
    places = [11, 0, FAR, -FAR, 5]
    pages = kernel(np.array(places), numbers(), empty())
    np.testing.assert_array_equal(all_rows(widened, pages), expected([places] * 2))


@pytest.mark.parametrize("rows", [0, NEW])
def test_a_whole_state_becomes_one_page_and_comes_back(widened, rows):
    kernel = build(page_rows(AppendProblem((2,), (ROW,), "float32", "int8")))
    page, state = np.zeros((1, 2, NEW * (ROW + 2)), np.int8), np.ascontiguousarray(numbers()[:, :rows])
    kernel.run_on(0, over(state), over(page))
    back = widened(page, np.full((2, rows, ROW), 7, np.float32))
    np.testing.assert_array_equal(back, round_rows(state))
