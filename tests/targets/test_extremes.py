"""NaN, infinity and nothing at all, through operators that compare; against numpy."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import moec
from moec.common.errors import UnsupportedError

from .conftest import parse

NAN, INF = np.nan, np.inf
ROWS = np.array(
    [
        [NAN, 1, 2, 3],
        [1, NAN, INF, 2],
        [-INF] * 4,
        [INF] * 4,
        [-INF, 1, INF, 2],
        [3, 3, 1, NAN],
        [NAN] * 4,
        [1, 5, 5, 2],
    ],
    np.float32,
)


def run(text: str, *arrays: np.ndarray) -> list[np.ndarray]:
    return list(moec.compile(parse(text), passes="O0")(*arrays).values())


def test_elementwise_operators_keep_nan():
    others = ROWS[:, ::-1].copy()
    text = """g (float[n,4] x, float[n,4] w)
        => (float[n,4] a, float[n,4] b, float[n,4] c, float[n,4] d, float[n,4] e, bool[n,4] f, bool[n,4] h, bool[n,4] i)
        <float two = {2}, float three = {3}> {
        a = Max(x, w) b = Min(x, w) c = Relu(x) d = Clip(x, two, three) e = Max(two, x)
        f = Cast<to = 9>(x) less = Less(x, w) h = Not(less) equal = Equal(x, w) i = Not(equal) }"""
    expected = [
        np.maximum(ROWS, others), np.minimum(ROWS, others), np.maximum(ROWS, 0), np.clip(ROWS, 2, 3),
        np.maximum(ROWS, 2), ROWS.astype(bool), ~np.less(ROWS, others), np.not_equal(ROWS, others),
    ]  # fmt: skip
    for got, want in zip(run(text, ROWS, others), expected, strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("dtype", ["float", "float16"])
def test_reductions_of_rows_with_nan_and_infinity(dtype):
    rows = ROWS.astype(np.float32 if dtype == "float" else np.float16)
    text = f"""g ({dtype}[n,4] x) => ({dtype}[n] a, {dtype}[n] b, int64[n] c, int64[n] d, int64[n] e)
        <int64[1] axis = {{1}}> {{
        a = ReduceMax<keepdims = 0>(x, axis) b = ReduceMin<keepdims = 0>(x, axis)
        c = ArgMax<axis = 1, keepdims = 0>(x) d = ArgMin<axis = 1, keepdims = 0>(x)
        e = ArgMax<axis = 1, keepdims = 0, select_last_index = 1>(x) }}"""
    last = 3 - rows[:, ::-1].argmax(1)
    expected = [rows.max(1), rows.min(1), rows.argmax(1), rows.argmin(1), last]
    for got, want in zip(run(text, rows), expected, strict=True):
        np.testing.assert_array_equal(got, want)


def test_the_logarithm_of_a_sum_of_exponentials_is_infinite_where_a_number_is():
    text = "g (float[n,4] x) => (float[n] y) <int64[1] axis = {1}> { y = ReduceLogSumExp<keepdims = 0>(x, axis) }"
    with np.errstate(invalid="ignore"):
        expected = np.logaddexp.reduce(ROWS.astype(np.float64), axis=1)
    expected[4] = INF  # numpy subtracts infinities on the way
    np.testing.assert_allclose(run(text, ROWS)[0], expected, rtol=1e-6)


@pytest.mark.parametrize("size", ["n", "0"])
def test_reductions_of_nothing(size):
    text = f"""g (float[2,{size},4] x) => (float[2,4] a, float[2,4] b, float[2,4] c, float[2,4] d)
        <int64[1] axis = {{1}}> {{
        a = ReduceMax<keepdims = 0>(x, axis) b = ReduceMin<keepdims = 0>(x, axis)
        c = ReduceLogSumExp<keepdims = 0>(x, axis) d = ReduceMean<keepdims = 0>(x, axis) }}"""
    for got, number in zip(run(text, np.zeros((2, 0, 4), np.float32)), (-INF, INF, -INF, NAN), strict=True):
        np.testing.assert_array_equal(got, np.full((2, 4), number, np.float32))


def test_the_mean_of_no_integers_is_not_a_division_by_zero():
    text = "g (int64[2,n] x) => (int64[2] y) <int64[1] axis = {1}> { y = ReduceMean<keepdims = 0>(x, axis) }"
    assert run(text, np.zeros((2, 0), np.int64))[0].tolist() == [0, 0]


@pytest.mark.parametrize("axes", ["{1}", "{-2}"])
@pytest.mark.parametrize("operator", ["ReduceL2", "ReduceLogSum", "ReduceLogSumExp"])
def test_roots_and_logarithms_of_integers_are_refused(operator: str, axes: str):
    text = f"g (int32[n,3] x) => (int32[m,k] y) <int64[1] axes = {axes}> {{ y = {operator}(x, axes) }}"
    with pytest.raises(UnsupportedError, match=rf"\({operator}\): {operator} of int32; expected floats"):
        run(text, np.ones((2, 3), np.int32))


def test_extremes_of_booleans():
    text = """g (bool[n,3] x) => (bool[n] a, bool[n] b) <int64[1] axis = {1}> {
        a = ReduceMax<keepdims = 0>(x, axis) b = ReduceMin<keepdims = 0>(x, axis) }"""
    x = np.array([[1, 0, 1], [1, 1, 1], [0, 0, 0]], bool)
    for got, want in zip(run(text, x), (x.max(1), x.min(1)), strict=True):
        np.testing.assert_array_equal(got, want)


def test_bfloat16_between_two_operators_is_rounded():
    x = np.concatenate([np.linspace(-3, 3, 29, dtype=np.float32), np.array([NAN, INF, 3.4e38], np.float32)])[None]
    text = """g (float[n,32] x) => (float[n,32] a, float[n,32] b) {
        h = Cast<to = 16>(x) a = Cast<to = 1>(h) r = Relu(h) s = Add(r, h) b = Cast<to = 1>(s) }"""
    half = x.astype(ml_dtypes.bfloat16)
    same, doubled = run(text, x)
    np.testing.assert_array_equal(same, half.astype(np.float32))
    np.testing.assert_array_equal(doubled, (np.maximum(half, 0) + half).astype(np.float32))


def test_powers_of_a_half_are_no_roots():
    """IEEE 754: -inf raised to 0.5 is inf, -0 is 0. Sign has no sign of zero, and Acosh is NaN below 1."""
    x = np.array([0, -0.0, 4, -4, INF, -INF, NAN, -3e38, 1], np.float32)
    text = """g (float[n] x) => (float[n] a, float[n] b, float[n] c) <float half = {0.5}> {
        a = Pow(x, half) s = Sign(x) b = Reciprocal(s) c = Acosh(x) }"""
    for actual, want in zip(
        run(text, x),
        [
            [0, 0, 2, NAN, INF, INF, NAN, NAN, 1],
            [INF, INF, 1, -1, 1, -1, NAN, -1, 1],
            [NAN, NAN, np.arccosh(np.float32(4)), NAN, INF, NAN, NAN, NAN, 0],
        ],
        strict=True,
    ):
        np.testing.assert_allclose(actual, np.array(want, np.float32), rtol=1e-6)
        assert not np.signbit(actual[actual == 0]).any()


def test_the_remainder_of_floats_has_the_sign_of_the_divisor():
    numbers = np.array([0, 1, -1, 2.5, -2.5, 5, -5, INF, -INF, NAN], np.float32)
    x, y = np.meshgrid(numbers, numbers)
    (actual,) = run("g (float[n,m] x, float[n,m] y) => (float[n,m] z) { z = Mod(x, y) }", x, y)
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(actual, np.mod(x, y))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("z = Dropout(x, r, t)", "set at run time by 't'"),
        ("yes = Constant<value = bool {1}>() z = Dropout(x, r, yes)", "training_mode is true"),
    ],
)
def test_what_is_refused(body, reason):
    with pytest.raises(UnsupportedError, match=reason):
        moec.compile(parse(f"g (float[n,4] x, float r, bool t) => (float[n,4] z) {{ {body} }}"))


def test_dropout_outside_training_does_nothing():
    text = """g (float[n,4] x, float r) => (float[n,4] z) { no = Constant<value = bool {0}>() z = Dropout(x, r, no) }"""
    np.testing.assert_array_equal(run(text, ROWS, np.array(0.5, np.float32))[0], ROWS)


def test_a_constant_divisor_of_zero():
    x = np.float32([1.5, -1.5, 0, -0.0, INF, -INF, NAN])
    text = """g (float[n] x) => (float[n] a, float[n] b, float c, float[n] d)
        <float zero = {0}, float minus = {-0.0}, float one = {1}, float eight = {8}> {
        a = Div(x, zero) b = Div(x, minus) c = Div(one, zero) d = Div(x, eight) }"""
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = [x / np.float32(0), x / np.float32(-0.0), np.float32(INF), x / np.float32(8)]
    for actual, right in zip(run(text, x), expected, strict=True):
        np.testing.assert_array_equal(actual, right)


def test_nothing_of_floats_cancels():
    """A sum less one of its terms is rounded; infinity and NaN are not zero times or less themselves."""
    x = np.array([1.25, 2.75, -2.5, 0, INF, -INF, NAN], np.float32)
    y = np.full(7, 12582912, np.float32)  # where numbers lie 1 apart
    text = """g (float[n] x, float[n] y) => (float[n] a, float[n] b, float[n] c, float[n] d, float[n] e, float[n] f)
        <float big = {12582912}, float zero = {0}> {
        sum = Add(x, y) a = Sub(sum, y) shifted = Add(x, big) b = Sub(shifted, big)
        c = Sub(x, x) d = Mul(zero, x) e = Div(zero, x) negative = Neg(y) f = Add(sum, negative) }"""
    with np.errstate(invalid="ignore"):
        expected = [x + y - y, x + y - y, x - x, 0 * x, 0 / x, x + y - y]
    for actual, right in zip(run(text, x, y), expected, strict=True):
        np.testing.assert_array_equal(actual, right.astype(np.float32))


@pytest.mark.parametrize(("text", "attributes"), [("float", ""), ("float[n]", ", noop_with_empty_axes = 1")])
def test_reductions_over_no_axis_still_compute(text, attributes):
    """The logarithm, square or magnitude of the one element there is, of a scalar or where no axis is named."""
    x = np.array(-2, np.float32) if text == "float" else np.array([-2, 0.5, 3], np.float32)
    names = ["ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp", "ReduceMean", "ReduceMax"]
    nodes = " ".join(f"y{number} = {name}<keepdims = 0{attributes}>(x)" for number, name in enumerate(names))
    outputs = ", ".join(f"{text} y{number}" for number in range(len(names)))
    with np.errstate(invalid="ignore"):
        expected = [np.abs(x), np.abs(x), x * x, np.log(x), x, x, x]
    for actual, right in zip(run(f"g ({text} x) => ({outputs}) {{ {nodes} }}", x), expected, strict=True):
        np.testing.assert_allclose(actual, right, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["int32", "int64"])
@pytest.mark.parametrize(("operator", "expected"), [("Div", (-1, 2, 0)), ("Mod", (0, 0, 0))])
def test_the_least_integer_divided_by_minus_one(operator, expected, dtype):
    """Its quotient is beyond the type, and processors trap, as they do at a division by zero."""
    model = moec.compile(parse(f"g ({dtype}[N] x, {dtype}[N] w) => ({dtype}[N] y) {{ y = {operator}(x, w) }}"))
    least = np.iinfo(dtype).min
    y = model(np.array([1, -2, 0, least, 7] * 9, dtype), np.array([-1, -1, -1, -1, 0] * 9, dtype))["y"]
    np.testing.assert_array_equal(y.reshape(9, 5)[:, :3], [expected] * 9)
