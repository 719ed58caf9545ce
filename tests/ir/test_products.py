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


def small_float_group(group: np.ndarray, largest: float, dtype: type, scale: float) -> np.ndarray:
    """A group rounded to the nearest multiples of ``scale`` by a number of the type; NaN if the scale is."""
    bits = ml_dtypes.finfo(dtype).bits - 1
    codes = np.arange(2**bits - (bits == 7), dtype=np.uint8)
    numbers = codes.view(dtype).astype(np.float64)
    assert numbers[-1] == largest
    nearest = [numbers[np.abs(numbers - abs(float(x) / scale)).argmin()] if scale else 0.0 for x in group]
    with np.errstate(over="ignore"):
        return np.copysign(FLOAT32(scale) * np.array(nearest, FLOAT32), group)


def power_group(group: np.ndarray, largest: float, dtype: type) -> np.ndarray:
    if not np.isfinite(group).all():
        return np.full(group.shape, np.nan, FLOAT32)
    powers = 2.0 ** np.arange(-127, 128)
    return small_float_group(group, largest, dtype, powers[powers >= float(np.abs(group).max()) / largest][0])


@pytest.mark.parametrize("group", [0, 4, 5, 32, 2**62])
@pytest.mark.parametrize(
    ("arithmetic", "largest", "dtype"),
    [("mxfp8", 448.0, ml_dtypes.float8_e4m3fn), ("mxfp4", 6.0, ml_dtypes.float4_e2m1fn)],
)
def test_scales_that_are_powers_of_two(arithmetic: str, largest: float, dtype: type, group: int) -> None:
    x = np.random.default_rng(0).normal(size=(9, 14)).astype(FLOAT32)
    x[2], x[3, 5], x[4, 6], x[5] = 0, np.inf, np.nan, 1e-45
    x[6], x[7] = np.nextafter(FLOAT32(largest), FLOAT32(1000)), largest
    x[8, 0] = 3e38
    with np.errstate(over="ignore"):
        result = rounded_rows(ProductSpec(arithmetic=arithmetic, activation_group=group), x)
    assert (result[6] == np.where(largest == 6, 6, 448)).all() and (result[7] == largest).all()
    starts = range(0, 14, group or 14)
    for actual, row in zip(result, x, strict=True):
        expected = np.concatenate([power_group(row[at : at + (group or 14)], largest, dtype) for at in starts])
        np.testing.assert_array_equal(actual, expected)


def nvfp4_row(row: np.ndarray, group: int) -> np.ndarray:
    factor = np.abs(row).max() / FLOAT32(448 * 6)
    if not np.isfinite(factor):
        return np.full(row.shape, np.nan, FLOAT32)
    parts = []
    for start in range(0, len(row), group):
        own = row[start : start + group]
        code = min(FLOAT32(448), np.abs(own).max() / FLOAT32(6) / factor if factor else FLOAT32(0))
        scale = FLOAT32(ml_dtypes.float8_e4m3fn(code)) * factor
        shares = np.clip(own / scale if scale else own * 0, -6, 6)
        parts.append(scale * shares.astype(ml_dtypes.float4_e2m1fn).astype(FLOAT32))
    return np.concatenate(parts)


@pytest.mark.parametrize("group", [4, 5, 16])
def test_scales_of_codes_times_the_factor_of_a_row(group: int) -> None:
    random = np.random.default_rng(0)
    x = (random.normal(size=(9, 14)) * 2.0 ** random.integers(-20, 1, (9, 14))).astype(FLOAT32)
    x[2], x[3, 5], x[4, 6], x[5] = 0, np.inf, np.nan, 1e-45
    x[6], x[7, :4] = 2688.0, 0
    with np.errstate(all="ignore"):
        result = rounded_rows(ProductSpec(arithmetic="nvfp4", activation_group=group), x)
        for actual, row in zip(result, x, strict=True):
            np.testing.assert_array_equal(actual, nvfp4_row(row, group))
    assert (result[6] == 2688).all() and np.isnan(result[3:5]).all()


def test_the_factor_of_a_row_belongs_to_no_other() -> None:
    x = np.random.default_rng(0).normal(size=(2, 32)).astype(FLOAT32)
    spec = ProductSpec(arithmetic="nvfp4", activation_group=16)
    alone = rounded_rows(spec, x[:1])
    x[1] *= 1000
    np.testing.assert_array_equal(rounded_rows(spec, x)[:1], alone)


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
