"""Integers divided by 0 or by -1, and integers that overflow their type, at run time and at compile time."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import moec
from moec.common.errors import UnsupportedError
from moec.targets.tvm.lowering.lowering import lower
from moec.targets.tvm.onnx.converters import all_converters
from moec.targets.tvm.sizes.symbolic import Sizes, combined

from .conftest import parse


def run(text: str, **arrays: np.ndarray) -> list[np.ndarray]:
    return list(moec.compile(parse(text)).run(arrays).values())


@pytest.mark.parametrize("dtype", ["int64", "int32", "int8", "uint8"])
def test_no_divisor_stops_the_process(dtype):
    """Division by 0 may give any result, as ONNX defines none. The least integer over -1 is itself, modulo 2^bits."""
    limits = np.iinfo(dtype)
    numbers = np.array([limits.min, limits.min + 1, 3, 0, 5, limits.max], dtype)
    divisors = np.array([0, 1, 2, 7, *(() if limits.min == 0 else (-1, -2))], dtype)
    x, y = np.meshgrid(numbers, divisors)
    text = f"""g ({dtype}[n,m] x, {dtype}[n,m] w) => ({dtype}[n,m] a, {dtype}[n,m] b, {dtype}[n,m] c) {{
        a = Div(x, w) b = Mod(x, w) c = Mod<fmod = 1>(x, w) }}"""
    quotients, floored, truncated = run(text, x=x, w=y)
    divided = y != 0
    wide, by = x[divided].astype(object), y[divided].astype(object)
    exact = np.abs(wide) // np.abs(by) * np.where((wide < 0) == (by < 0), 1, -1).astype(object)
    np.testing.assert_array_equal(quotients[divided], (exact % (1 << limits.bits)).astype(np.uint64).astype(dtype))
    np.testing.assert_array_equal(floored[divided], (wide % by).astype(dtype))
    np.testing.assert_array_equal(truncated[divided], (wide - exact * by).astype(dtype))


@pytest.mark.parametrize("dtype", ["int64", "int32"])
def test_sums_and_products_with_large_constants_wrap_around(dtype):
    top = np.iinfo(dtype).max
    a, b = np.array([top // 3, top - 3], dtype)
    x = np.array([0, 1, -5, top], dtype)
    text = f"""g ({dtype}[n] x) => ({dtype}[n] y, bool[n] z) <{dtype} a = {{{a}}}, {dtype} b = {{{b}}}> {{
        s = Add(x, b) t = Mul(s, a) u = Add(t, b) y = Mul(u, a) z = Less(x, b) }}"""
    with np.errstate(over="ignore"):
        expected = ((x + b) * a + b) * a
    actual, less = run(text, x=x)
    np.testing.assert_array_equal(actual, expected)
    np.testing.assert_array_equal(less, x < b)


def test_constants_that_combine_beyond_their_type_are_refused():
    text = """g (int64[n] x) => (int64[n] y) <int64 a = {2000000000}> { s = Mul(x, a) t = Mul(s, a) y = Mul(t, a) }"""
    with pytest.raises(UnsupportedError, match="combine to 8000000000000000000000000000, which int64 cannot hold"):
        moec.compile(parse(text))


@pytest.mark.parametrize("operator", ["Div", "Mod"])
def test_sizes_divide_only_where_they_are_not_0(operator):
    text = f"""g (float[n] x) => (int64 y) <int64 three = {{3}}, int64 seven = {{7}}> {{
        s = Size(x) d = Sub(s, three) y = {operator}(seven, d) }}"""
    model = moec.compile(parse(text))
    assert [int(model(np.zeros(n, np.float32))["y"]) for n in (4, 5, 8)] == (
        [7, 3, 1] if operator == "Div" else [0, 1, 2]
    )
    model(np.zeros(3, np.float32))  # says nothing, and does not stop


def test_sizes_beyond_64_bits_wrap_around():
    text = """g (float[n] x) => (int64 y, int64 z, int64 w) <int64 big = {4611686018427387904}, int64 three = {3}> {
        s = Size(x) p = Mul(s, big) y = Mul(p, big) t = Add(s, big) u = Sub(t, three) z = Mul(u, three)
        w = Sub(z, big) }"""
    n, big = 5, 1 << 62
    exact = [n * big * big, (n + big - 3) * 3, (n + big - 3) * 3 - big]
    actual = run(text, x=np.zeros(n, np.float32))
    assert [int(one) for one in actual] == [(one + (1 << 63)) % (1 << 64) - (1 << 63) for one in exact]


def test_a_size_cast_to_8_bits_keeps_8():
    text = """g (float[n] x) => (int64 y, int32 z) {
        s = Size(x) b = Cast<to = 2>(s) y = Cast<to = 7>(b) z = Cast<to = 6>(s) }"""
    assert [int(one) for one in run(text, x=np.zeros(300, np.float32))] == [44, 300]


def test_unsigned_constants_of_64_bits():
    text = "g (float[n] x) => (uint64 y) <uint64 big = {9223372036854775813}, uint64 two = {2}> { y = Div(big, two) }"
    assert int(run(text, x=np.zeros(1, np.float32))[0]) == 9223372036854775813 // 2


def test_a_range_of_more_numbers_than_memory_holds():
    text = """g () => (int64[n] y) <int64 a = {-9223372036854775808}, int64 b = {9223372036854775807}, int64 c = {1}> {
        y = Range(a, b, c) }"""
    with pytest.raises(UnsupportedError, match=r"Range makes 18446744073709551615 numbers; expected at most"):
        moec.compile(parse(text))


@pytest.mark.parametrize(
    ("name", "dtype", "left", "right", "expected"),
    [
        ("Add", "int32", 2**31 - 1, 1, -(2**31)),
        ("Sub", "uint8", 0, 1, 255),
        ("Mul", "int64", 2**62, 4, 0),
        ("Div", "int64", -7, 2, -3),
        ("Div", "int64", 5, 0, None),
        ("Mod", "int64", 5, 0, None),
        ("Div", "int64", -(2**63), -1, None),
    ],
)
def test_numbers_at_compile_time(name, dtype, left, right, expected):
    assert combined(Sizes(), name, dtype, left, right) == expected


def test_what_of_sizes_is_left_to_the_program():
    sizes = Sizes()
    tokens = sizes.variable("T")
    assert sizes.equal(combined(sizes, "Mul", "int64", tokens, 8), tokens * 8)
    assert combined(sizes, "Mul", "int64", tokens, 2**42) is None
    assert combined(sizes, "Div", "int64", 8, tokens) is not None
    assert combined(sizes, "Div", "int64", 8, tokens - 9) is None
    assert combined(sizes, "Mod", "int64", 8, tokens) is None
    assert combined(sizes, "Mod", "int64", 8, tokens + 1) is not None


@pytest.mark.parametrize("source", ["int64", "int32", "uint64", "int16", "uint8", "int8"])
def test_a_cast_wraps_around(source):
    limits, dtypes = np.iinfo(source), ("int8", "uint8", "int16", "uint16")
    whole = np.array([0, 1, 127, 128, 255, 256, 300, 32767, 32768, 65535, 65536, -1, -128, -129, -32769], object)
    x = np.array([number for number in (*whole, limits.min, limits.max) if limits.min <= number <= limits.max], source)
    codes = {dtype: onnx.TensorProto.DataType.Value(dtype.upper()) for dtype in dtypes}
    body = " ".join(f"to_{dtype} = Cast <to = {code}> (x)" for dtype, code in codes.items())
    outputs = ", ".join(f"{dtype}[n] to_{dtype}" for dtype in dtypes)
    for dtype, cast in zip(dtypes, run(f"g ({source}[n] x) => ({outputs}) {{ {body} }}", x=x), strict=True):
        np.testing.assert_array_equal(cast, x.astype(dtype))


@pytest.mark.parametrize("dtype", ["int8", "int16"])
def test_a_place_that_wraps_around_is_compared_as_what_it_becomes(dtype):
    """TVM knows that places are not negative."""
    to = onnx.TensorProto.DataType.Value(dtype.upper())
    text = f"""g (float[n] x) => (bool[m] y) <int64 zero = {{0}}, int64 one = {{1}}, int32 none = {{0}}> {{
        n = Size(x) p = Range(zero, n, one) q = Cast <to = {to}> (p) r = Cast <to = 6> (q) y = Less(r, none) }}"""
    (actual,) = run(text, x=np.zeros(70000, np.float32))
    np.testing.assert_array_equal(actual, np.arange(70000).astype(dtype) < 0)


FOLDED = (
    "Neg(a) Abs(a) Sign(a) Identity(a) BitwiseNot(a) Add(a,b) Sub(a,b) Mul(a,b) Div(a,b) Mod(a,b) Max(a,b) Min(a,b) "
    "BitwiseAnd(a,b) BitwiseOr(a,b) Where(c,a,b) Not(c) And(c,d) Or(c,d) Xor(c,d) Equal(a,b) Less(a,b) Greater(a,b)"
)


@pytest.mark.parametrize("shape", ["", "[1]"])
@pytest.mark.parametrize("dtype", ["int64", "int32", "int16", "int8", "uint32", "uint16", "uint8"])
def test_results_of_constants_have_the_type_of_their_operands(dtype, shape):
    """Also where they are folded and have no axes, for which functions of numpy return numbers and not arrays."""
    calls = FOLDED.split() if not dtype.startswith("u") else [call for call in FOLDED.split() if "Neg" not in call]
    flags = ("Not", "And", "Or", "Xor", "Equal", "Less", "Greater")
    types = ["bool" if call.startswith(flags) else dtype for call in calls]
    results = ", ".join(f"{kind}{shape} y{number}" for number, kind in enumerate(types))
    body = " ".join(f"y{number} = {call}" for number, call in enumerate(calls))
    given = f"{dtype}{shape} a = {{5}}, {dtype}{shape} b = {{3}}, bool{shape} c = {{1}}, bool{shape} d = {{0}}"
    model = ir.from_proto(parse(f"g (float[n] x) => ({results}) <{given}> {{ {body} }}"))
    assert [output.dtype for output in lower(model, all_converters({})).outputs] == types
