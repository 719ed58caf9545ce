"""Rows rounded for the arithmetic int8, against the reference, in the emulator."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from moec.ir.dialect import ProductSpec
from moec.ir.products import rounded_rows
from moec.targets.gpu.kernels import round_rows
from moec.targets.gpu.kernels.round_rows import RowRounding, round_blocks, round_pairs

from ....products import thinned
from ...cuda.kernels.kernel_runner import build
from ...cuda.kernels.layers import DTYPES, sort_pairs

RANDOM = np.random.default_rng(0)
SPECIAL = np.array(
    [
        [1, -127, 0.5, 1.5, 2.5, -0.5, 126.5, -126.5],
        [0, 0, 0, 0, 0, 0, 0, 1e-45],
        [3e-44, -2.7e-43, 0, 1e-45, 0, 0, 0, 0],
        [1, np.inf, 2, 3, 4, 5, 6, 7],
        [1, np.nan, 2, 3, 4, 5, 6, 7],
        [-np.inf, 1, 2, 3, 4, 5, 6, 7],
    ],
    np.float32,
)
"""Rows with ties, with scales too small for a float, and with an infinity or a NaN."""


def expected(rows: np.ndarray, group: int, arithmetic: str = "int8") -> np.ndarray:
    spec = ProductSpec(arithmetic=arithmetic, activation_group=group)
    with np.errstate(all="ignore"):
        return rounded_rows(spec, rows.astype(np.float32)).astype(rows.dtype)


@thinned(("inner", "group"), [(72, 32), (72, 0), (5, 128)], 2)
@thinned("dtype", [np.float32, np.float16, ml_dtypes.bfloat16], 4)
def test_every_row(inner, group, dtype):
    kernel = build(round_rows.round_rows(RowRounding(inner, group, np.dtype(dtype).name)))
    for count in (0, 1, 7):
        rows = RANDOM.standard_normal((count, inner)).astype(dtype)
        np.testing.assert_array_equal(kernel(rows, np.full_like(rows, np.nan)), expected(rows, group))


@pytest.mark.parametrize("group", [0, 3])
def test_halves_and_numbers_that_are_none(group):
    kernel = build(round_rows.round_rows(RowRounding(8, group)))
    np.testing.assert_array_equal(kernel(SPECIAL, np.zeros_like(SPECIAL)), expected(SPECIAL, group))


@pytest.mark.parametrize("arithmetic", ["mxfp8", "mxfp4", "nvfp4"])
def test_rows_of_small_floats_that_stay_floats(arithmetic):
    group = 16 if arithmetic == "nvfp4" else 32
    kernel = build(round_rows.round_rows(RowRounding(72, group, "float32", arithmetic)))
    rows = (RANDOM.standard_normal((8, 72)) * 2.0 ** RANDOM.integers(-14, 1, (8, 72))).astype(np.float32)
    rows[2], rows[3, 5], rows[4, 70], rows[5], rows[6] = 0, np.inf, np.nan, 1e-45, 6
    np.testing.assert_array_equal(kernel(rows, np.full_like(rows, np.nan)), expected(rows, group, arithmetic))


def test_only_rows_in_use_change():
    ids = np.array([[0, 2], [-1, 2], [2, 0]], np.int32)
    sorted_pairs, _, block_count = order = sort_pairs(3, 16, ids)
    rows = RANDOM.standard_normal((len(sorted_pairs), 20), np.float32)
    result = build(round_blocks(RowRounding(20, 8), 16))(ids, sorted_pairs, block_count, rows, rows)
    used = (sorted_pairs >= 0) & (np.arange(len(order[0])) < block_count[0] * 16)
    assert used.sum() == 5
    np.testing.assert_array_equal(result, np.where(used[:, None], expected(rows, 8), rows))
    result = build(round_pairs(RowRounding(20, 8)))(ids, rows, rows)
    np.testing.assert_array_equal(result, np.concatenate([expected(rows[: ids.size], 8), rows[ids.size :]]))


def test_a_type_that_is_not_stored_has_a_reason():
    why_not = round_rows.ROUND.why_not
    assert [why_not(RowRounding(8, 0, np.dtype(dtype).name), "sm_80") for dtype in DTYPES] == [None] * 3
    assert "float64" in why_not(RowRounding(8, 0, "float64"), "sm_80")
