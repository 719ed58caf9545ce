"""Rows rounded to fp8 against their meaning in numpy, bit for bit."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from moec.ir.dialect import ProductSpec
from moec.ir.products import rounded_rows
from moec.targets.cpu.hardware.machine import Machine
from moec.targets.cpu.kernels.round_rows import RoundedRows, round_rows

from .kernel_runner import build

RANDOM = np.random.default_rng(0)


def expected(rows: np.ndarray, group: int, arithmetic: str = "fp8") -> np.ndarray:
    with np.errstate(all="ignore"):
        spec = ProductSpec(arithmetic=arithmetic, activation_group=group)
        return rounded_rows(spec, rows.astype(np.float32)).astype(rows.dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize(("width", "group"), [(256, 128), (200, 128), (37, 0), (5, 128)])
def test_rows(width: int, group: int, dtype: type) -> None:
    problem = RoundedRows(width, width + 3, group, np.dtype(dtype).name)
    kernel = build(round_rows(problem), Machine.host())
    for count in (0, 1, 7):
        rows = (RANDOM.standard_normal((count, width + 3)) * 2.0 ** RANDOM.integers(-14, 1, (count, width + 3))).astype(
            dtype
        )
        actual = kernel(rows, np.zeros_like(rows))
        np.testing.assert_array_equal(actual[:, :width], expected(rows[:, :width], group))
        np.testing.assert_array_equal(actual[:, width:], rows[:, width:])


@pytest.mark.parametrize("arithmetic", ["mxfp8", "mxfp4", "nvfp4"])
@pytest.mark.parametrize(("width", "group"), [(96, 32), (37, 16)])
def test_other_small_floats(width: int, group: int, arithmetic: str) -> None:
    kernel = build(round_rows(RoundedRows(width, width, group, "float32", arithmetic)), Machine.host())
    rows = (RANDOM.standard_normal((9, width)) * 2.0 ** RANDOM.integers(-14, 1, (9, width))).astype(np.float32)
    rows[2], rows[3, 5], rows[4, 20], rows[5] = 0, np.inf, np.nan, 1e-45
    rows[6], rows[7] = 448, np.nextafter(np.float32(448), np.float32(1000))
    np.testing.assert_array_equal(kernel(rows, np.zeros_like(rows)), expected(rows, group, arithmetic))


def test_every_place_between_two_numbers_and_numbers_that_are_none() -> None:
    codes = np.arange(127, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    middles = (codes[1:] + codes[:-1]) / 2
    near = [np.nextafter(middles, np.float32(end)) for end in (0, 1000)]
    row = np.concatenate([codes, middles, *near, -codes, -middles])
    strange = np.ones((5, len(row)), np.float32)
    strange[0, 3], strange[1, 4], strange[2, 5], strange[3] = np.inf, -np.inf, np.nan, 0
    strange[4] = 1e-45
    rows = np.concatenate([row[None], row[None] * np.float32(3e-38), strange])
    kernel = build(round_rows(RoundedRows(len(row), len(row), 0)), Machine.host())
    np.testing.assert_array_equal(kernel(rows, np.zeros_like(rows)), expected(rows, 0))
