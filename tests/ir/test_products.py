"""Rounding of rows before they are multiplied, against loops that follow ProductSpec word by word."""

import ml_dtypes
import numpy as np
import pytest

from moec.ir.dialect import ProductSpec
from moec.ir.products import product, quantize_rows, round_rows, rounded_rows

FLOAT32 = np.float32


def int8_group(group: np.ndarray) -> np.ndarray:
    if not np.isfinite(group).all():
        return np.full(group.shape, np.nan, FLOAT32)
    scale = np.abs(group).max() / FLOAT32(127)
    return scale * np.array([np.round(x / scale) if scale else 0 for x in group], FLOAT32)


@pytest.mark.parametrize("group", [0, 1, 4, 5, 32])
@pytest.mark.parametrize("rows", [0, 1, 7])
def test_int8_is_what_the_loop_computes(group: int, rows: int) -> None:
    x = np.random.default_rng(0).normal(size=(rows, 14)).astype(FLOAT32)
    actual = rounded_rows(ProductSpec(arithmetic="int8", activation_group=group), x)
    starts = range(0, 14, group or 14)
    expected = [[int8_group(row[start : start + (group or 14)]) for start in starts] for row in x]
    assert actual.dtype == x.dtype and actual.shape == x.shape
    for first, parts in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(first, np.concatenate(parts))


def fp8_group(group: np.ndarray) -> np.ndarray:
    if not np.isfinite(group).all():
        return np.full(group.shape, np.nan, FLOAT32)
    scale = np.abs(group).max() / FLOAT32(448)
    numbers = np.arange(127, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(FLOAT32)
    nearest = [numbers[np.abs(numbers - abs(x / scale)).argmin()] if scale else FLOAT32(0) for x in group]
    return np.copysign(scale * np.array(nearest, FLOAT32), group)


@pytest.mark.parametrize("group", [0, 4, 5, 128, 2**62])
def test_fp8_is_what_the_loop_computes(group: int) -> None:
    x = np.random.default_rng(0).normal(size=(7, 14)).astype(FLOAT32)
    x[2], x[3, 5], x[4, 6], x[5] = 0, np.inf, np.nan, 1e-45
    with np.errstate(all="ignore"):
        result = rounded_rows(ProductSpec(arithmetic="fp8", activation_group=group), x)
    starts = range(0, 14, group or 14)
    for actual, row in zip(result, x, strict=True):
        expected = np.concatenate([fp8_group(row[start : start + (group or 14)]) for start in starts])
        np.testing.assert_array_equal(actual, expected)


def test_the_largest_of_a_group_is_kept_and_halves_go_to_the_even_number_of_fp8() -> None:
    x = np.array([[448.0, -448.0, 17, 19, -17, 2.0**-10, 3 * 2.0**-10, 0]], FLOAT32)
    actual = rounded_rows(ProductSpec(arithmetic="fp8"), x)
    np.testing.assert_array_equal(actual, [[448, -448, 16, 20, -16, 0, 2.0**-8, 0]])


def test_halves_go_to_the_even_number() -> None:
    x = np.array([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5]], FLOAT32)
    np.testing.assert_array_equal(quantize_rows(x, 0)[1], [[127, 0, 2, 2, 0, -2]])


@pytest.mark.parametrize("tiny", [0.0, 1e-45])
def test_a_group_without_a_scale_becomes_zeros(tiny: float) -> None:
    x = np.array([[1.0, -1.0, tiny, -tiny]], FLOAT32)
    actual = rounded_rows(ProductSpec(arithmetic="int8", activation_group=2), x)
    np.testing.assert_array_equal(actual, [[1, -1, 0, 0]])


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_group_that_is_not_finite_makes_its_row_nan_and_no_other(wrong: float) -> None:
    x = np.ones((2, 4), FLOAT32)
    x[0, 3] = wrong
    actual = rounded_rows(ProductSpec(arithmetic="int8", activation_group=2), x)
    np.testing.assert_array_equal(np.isnan(product(actual, np.zeros((4, 3), FLOAT32))), [[True] * 3, [False] * 3])


def test_the_judge_in_float64_sees_the_numbers_of_float32() -> None:
    x = np.random.default_rng(0).normal(size=(3, 64)).astype(FLOAT32)
    for spec in (ProductSpec(arithmetic="int8", activation_group=16), ProductSpec(arithmetic="bfloat16")):
        narrow, wide = rounded_rows(spec, x), rounded_rows(spec, x.astype(np.float64))
        assert wide.dtype == np.float64
        np.testing.assert_array_equal(wide.astype(FLOAT32), narrow)


def test_bfloat16_rounds_every_element() -> None:
    x = np.array([[1.0, 1.00390625, 1.01171875, np.nan, np.inf]], FLOAT32)  # 1 + 1/256, 1 + 3/256: halves
    actual = rounded_rows(ProductSpec(arithmetic="bfloat16"), x)
    np.testing.assert_array_equal(actual, x.astype(ml_dtypes.bfloat16).astype(FLOAT32))
    np.testing.assert_array_equal(actual[0, :3], [1.0, 1.0, 1.015625])


def test_float32_rounds_nothing() -> None:
    x = np.random.default_rng(0).normal(size=(3, 8))
    assert rounded_rows(ProductSpec(), x) is x


def test_the_product_of_few_rows_converts_columns_piece_by_piece() -> None:
    a = np.ones((2, 600), FLOAT32)
    b = np.random.default_rng(0).normal(size=(600, 500)).astype(np.float16)
    np.testing.assert_allclose(product(a, b), a @ b.astype(FLOAT32), rtol=1e-5, atol=1e-5)
    assert product(a[:0], b).shape == (0, 500)


def test_rows_that_were_rounded_stay_what_they_are() -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal((1000, 48), np.float32) * np.exp(random.uniform(-90, 80, (1000, 1))).astype(np.float32)
    x[0] = 0
    rounded = round_rows(x)
    assert (np.abs(rounded - x) <= np.abs(x).max(axis=1, keepdims=True) / 253 + 2.0**-127).all()
    np.testing.assert_array_equal(round_rows(rounded), rounded)
    assert (rounded[0] == 0).all() and round_rows(x[:, :0]).shape == (1000, 0)
