"""Sizes, positions and pads that arrive when the program runs; against numpy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import moec
from moec.common.errors import InputError, UnsupportedError

from .conftest import parse

SIZES = (0, 1, 2, 5)
FAR = (-(2**63), -7, -2, -1, 0, 1, 2, 5, 2**63 - 1)


def compiled(text: str) -> moec.CompiledModel:
    return moec.compile(parse(text), passes="O0")


def numbers(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape) + 1


def integers(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


@pytest.mark.parametrize("step", [1, 3, -1, -2])
def test_slices(step):
    model = compiled(f"""g (float[N,2] x, int64[1] a, int64[1] b) => (float[M,2] y)
        <int64[1] axis = {{0}}, int64[1] step = {{{step}}}> {{ y = Slice(x, a, b, axis, step) }}""")
    for size, start, end in itertools.product(SIZES, FAR, FAR):
        x = numbers(size, 2)
        first = start
        if step < 0 and start + size < 0:
            first = 0  # ONNX clamps the start into the axis, numpy before its front
        np.testing.assert_array_equal(
            model(x, integers(start), integers(end))["y"], x[first:end:step], f"{start}:{end}"
        )


@pytest.mark.parametrize("operator", ["Add", "Where"])
def test_two_sizes_broadcast_where_one_turns_out_as_1(operator):
    body = "y = Add(x, w)" if operator == "Add" else "c = Cast<to = 9>(x) y = Where(c, x, w)"
    model = compiled(f"g (float[N,3] x, float[M,K] w) => (float[A,B] y) {{ {body} }}")
    for left, right, width in itertools.product(SIZES, SIZES, (1, 3, 4)):
        x, w = numbers(left, 3), numbers(right, width)
        try:
            expected = x + w if operator == "Add" else np.where(x.astype(bool), x, w)
        except ValueError:
            with pytest.raises(InputError, match="do not broadcast; expected equal ones, or a 1"):
                model(x, w)
        else:
            np.testing.assert_array_equal(model(x, w)["y"], expected)


def test_one_row_broadcasts_against_the_rows_it_is_taken_from():
    model = compiled("""g (float[N,3] x) => (float[N,3] y) <int64[1] zero = {0}, int64[1] one = {1}> {
        first = Slice(x, zero, one) d = Sub(x, first) y = Add(d, x) }""")
    for size in SIZES:
        x = numbers(size, 3)
        np.testing.assert_array_equal(model(x)["y"], x - x[:1] + x)


def test_batches_of_a_product():
    model = compiled("g (float[N,2,3] x, float[M,K,2] w) => (float[A,2,2] y) { y = MatMul(x, w) }")
    for left, right in itertools.product(SIZES, SIZES):
        x, w = numbers(left, 2, 3), numbers(right, 3, 2)
        if left != right and 1 not in (left, right):
            with pytest.raises(InputError, match="do not broadcast"):
                model(x, w)
        else:
            np.testing.assert_allclose(model(x, w)["y"], x @ w)
    with pytest.raises(InputError):
        model(numbers(2, 2, 3), numbers(2, 2, 2))


def test_an_inner_size_that_only_the_constant_factor_fixes():
    model = compiled("g (float[N,K] x) => (float[N,2] y) <float[3,2] w = {1, 2, 3, 4, 5, 6}> { y = MatMul(x, w) }")
    np.testing.assert_allclose(model(numbers(2, 3))["y"], numbers(2, 3) @ numbers(3, 2))
    with pytest.raises(InputError):
        model(numbers(2, 4))


def test_reshape_copies_and_infers():
    model = compiled("g (float[2,3,N] x, int64[3] s) => (float[A,B,C] y) { y = Reshape(x, s) }")
    x = numbers(2, 3, 4)
    for target, shape in (
        ((0, 0, 0), (2, 3, 4)),
        ((0, -1, 1), (2, 12, 1)),
        ((4, 3, 2), (4, 3, 2)),
        ((-1, 0, 4), (2, 3, 4)),
    ):
        np.testing.assert_array_equal(model(x, integers(*target))["y"], x.reshape(shape))
    for target in ((5, -1, 1), (-1, -1, 1), (2, 3, 3), (-2, 3, -4), (2**40, 2**40, 0)):
        with pytest.raises(InputError, match="expected as many elements"):
            model(x, integers(*target))


def test_reshape_to_a_size_of_zero_that_is_meant():
    model = compiled("g (float[N,M] x, int64[2] s) => (float[A,B] y) { y = Reshape<allowzero = 1>(x, s) }")
    for target, shape in (((0, 3), (0, 3)), ((3, 0), (3, 0)), ((-1, 4), (0, 4))):
        assert model(numbers(0, 2), integers(*target))["y"].shape == shape
    for target in ((-1, 0), (0, -1), (2, 1)):  # of nothing by nothing, -1 may be anything
        with pytest.raises(InputError, match="expected as many elements"):
            model(numbers(0, 2), integers(*target))
    with pytest.raises(UnsupportedError, match=r"node 'y' \(Reshape\): .* has a literal 0, so its -1"):
        compiled("""g (float[N,M] x) => (float[A,B] y) <int64[1] open = {-1}> {
            n = Shape<end = 1>(x)  zero = Sub(n, n)  s = Concat<axis = 0>(open, zero)
            y = Reshape<allowzero = 1>(x, s) }""")


@pytest.mark.parametrize("allowzero", [0, 1])
def test_reshape_to_no_axes(allowzero):
    for declared in ("float[N]", "float"):
        model = compiled(f"g ({declared} x, int64[0] s) => (float y) {{ y = Reshape<allowzero = {allowzero}>(x, s) }}")
        x = numbers(1) if declared == "float[N]" else np.array(7, np.float32)
        np.testing.assert_array_equal(model(x, integers())["y"], x.reshape(()))
    model = compiled("g (float[N] x, int64[0] s) => (float y) { y = Reshape(x, s) }")
    for size in (0, 2):
        with pytest.raises(InputError, match="expected as many elements"):
            model(numbers(size), integers())


def test_reshape_whose_open_size_does_not_divide():
    model = compiled("g (float[N,4] x) => (float[A,3] y) <int64[2] s = {-1, 3}> { y = Reshape(x, s) }")
    np.testing.assert_array_equal(model(numbers(3, 4))["y"], numbers(4, 3))
    with pytest.raises(InputError, match="expected as many elements"):
        model(numbers(5, 4))


@pytest.mark.parametrize("size", [0, 2])
def test_tiles_of_a_constant_size(size):
    model = compiled(f"g (float[{size},3] x) => (float[A,3] y) <int64[2] r = {{2, 1}}> {{ y = Tile(x, r) }}")
    np.testing.assert_array_equal(model(numbers(size, 3))["y"], np.tile(numbers(size, 3), (2, 1)))


def test_expand():
    model = compiled("g (float[N,3] x, int64[2] s) => (float[A,B] y) { y = Expand(x, s) }")
    for size, target in itertools.product(SIZES, ((1, 1), (5, 3), (0, 3), (2, 1))):
        x = numbers(size, 3)
        if size != target[0] and 1 not in (size, target[0]):
            with pytest.raises(InputError, match="do not broadcast"):
                model(x, integers(*target))
        else:
            shape = np.broadcast_shapes(x.shape, target)
            np.testing.assert_array_equal(model(x, integers(*target))["y"], np.broadcast_to(x, shape))


@pytest.mark.parametrize("dtype", ["int64", "float"])
def test_ranges(dtype):
    model = compiled(f"g ({dtype} a, {dtype} b, {dtype} c) => ({dtype}[N] y) {{ y = Range(a, b, c) }}")
    kind = np.int64 if dtype == "int64" else np.float32
    for start, limit, step in itertools.product((-3, 0, 2), (-3, 2, 7), (-2, -1, 1, 3)):
        values = [np.array(value, kind) for value in (start, limit, step)]
        np.testing.assert_array_equal(model(*values)["y"], np.arange(start, limit, step, dtype=kind))


def test_pads_and_what_they_are_filled_with():
    model = compiled("g (float[N,3] x, int64[4] p, float v) => (float[A,B] y) { y = Pad(x, p, v) }")
    fill = np.array(7, np.float32)
    for size, (top, left, bottom, right) in itertools.product((1, 2, 5), itertools.product((-1, 0, 1), repeat=4)):
        x = numbers(size, 3)
        if size + top + bottom < 0:
            with pytest.raises(InputError, match="expected a result of size 0 or more"):
                model(x, integers(top, left, bottom, right), fill)
            continue
        wide = np.pad(x, ((1, 1), (1, 1)), constant_values=7)
        expected = wide[1 - top : size + 1 + bottom, 1 - left : 4 + right]
        np.testing.assert_array_equal(model(x, integers(top, left, bottom, right), fill)["y"], expected)
    several = compiled("g (float[N] x, int64[2] p, float[K] v) => (float[A] y) { y = Pad(x, p, v) }")
    np.testing.assert_array_equal(several(numbers(2), integers(1, 0), numbers(1))["y"], [1, 1, 2])
    with pytest.raises(InputError, match="K numbers to fill with; expected one"):
        several(numbers(2), integers(1, 0), numbers(2))


@pytest.mark.parametrize("mode", ["edge", "reflect", "wrap"])
def test_pads_that_repeat_what_negative_ones_leave(mode):
    """Whatever there is to repeat, a result of size 0 needs nothing of it."""
    model = compiled(f'g (float[N] x, int64[2] p) => (float[M] y) {{ y = Pad<mode = "{mode}">(x, p) }}')
    for size, before, after in itertools.product((0, 1, 2, 3, 6), (-2, -1, 0, 1, 2), (-3, 0, 1, 3)):
        x, pads = numbers(size), (max(before, 0), max(after, 0))
        left = size + before + after - sum(pads)
        refusal = None
        if size + before + after < 0:
            refusal = "a result of size 0 or more"
        elif size + before + after > 0 and (left <= max(pads) > 0 if mode == "reflect" else left < 1):
            refusal = "pads below the size" if mode == "reflect" else "something to repeat"
        if refusal is not None:
            with pytest.raises(InputError, match=rf"pads \[p_0, p_1\] on axis 0 of size N; expected {refusal}"):
                model(x, integers(before, after))
            continue
        kept = x[max(-before, 0) :][: max(left, 0)]
        expected = np.pad(kept, pads, mode) if size + before + after else kept[:0]  # type: ignore[call-overload]
        np.testing.assert_array_equal(model(x, integers(before, after))["y"], expected, f"{size} {before} {after}")


def test_rows_that_a_constant_pad_moves():
    model = compiled("g (float[N,3] x) => (float[N,3] y) <int64[4] p = {1, 0, -1, 0}> { y = Pad(x, p) }")
    for size in SIZES:
        x = numbers(size, 3)
        expected = np.concatenate([np.zeros((1, 3), np.float32), x])[:size]
        np.testing.assert_array_equal(model(x)["y"], expected)


def test_the_best_k_of_fewer():
    model = compiled("g (float[N,3] x, int64[1] k) => (float[A,3] v) { v, i = TopK<axis = 0>(x, k) }")
    for size, k in itertools.product(SIZES, (-1, 0, 1, 3)):
        if 0 <= k <= size:
            expected = numbers(size, 3)[::-1][:k]
            np.testing.assert_array_equal(model(numbers(size, 3), integers(k))["v"], expected)
        else:
            with pytest.raises(InputError, match="; expected"):
                model(numbers(size, 3), integers(k))


def test_more_elements_than_fit_64_bits():
    model = compiled("g (int64[2] s) => (float[A,B] y) { y = ConstantOfShape(s) }")
    for sizes in ((2**40, 2**40), (2**32, 2**30)):
        with pytest.raises(moec.MoecError, match="not enough memory"):
            model(integers(*sizes))


def test_a_declared_rank_that_is_not_so_is_not_believed():
    model = compiled("g (float[N,3] x) => (float[] y) <int64[4] p = {0, 1, 0, 1}> { y = Pad(x, p) }")
    assert model(numbers(2, 3))["y"].shape == (2, 5)


@pytest.mark.parametrize(("operator", "compute"), [("Div", lambda a, b: a // b), ("Mod", lambda a, b: a % b)])
def test_a_size_divided_by_one_that_may_be_none(operator, compute):
    """Division by a size of 0 must not trap, although ONNX defines no result; n / n is simplified at compile time."""
    model = compiled(f"""g (float[N] x, float[M] w) => (float[K] y, float[N] z) {{
        n = Shape(x)  m = Shape(w)  k = {operator}(n, m)  y = ConstantOfShape(k)
        s = {operator}(n, n)  one = ConstantOfShape(s)  t = Mul(k, m)  u = {operator}(k, t)
        v = ConstantOfShape(u)  total = ReduceSum<keepdims = 0>(v)  z = Add(x, total) }}""")
    for size, other in itertools.product(SIZES, (1, 2, 3)):
        assert model(numbers(size), numbers(other))["y"].shape == (compute(size, other),)
    assert model(numbers(2), numbers(0))["y"].ndim == 1


def test_a_size_in_whole_chunks_is_the_one_that_a_reshape_puts_in_its_place():
    """Padding to chunks of 4 and back, as exporters write it where it was traced without padding."""
    model = compiled("""g (float[B,T,8] x) => (float[B,T,8] y)
        <int64 four = {4}, int64[2] eight = {2, 4}, int64[1] m = {-1}> {
        b = Shape<start = 0, end = 1>(x)  t = Shape<start = 1, end = 2>(x)
        rest = Mod(t, four)  more = Sub(four, rest)  pad = Mod(more, four)  padded = Add(t, pad)
        area = Mul(b, padded)  chunk = Mul(b, four)  chunks = Div(area, chunk)  length = Div(padded, chunks)
        whole = Mul(chunks, length)  s = Concat<axis = 0>(b, whole, eight)  heads = Reshape<allowzero = 1>(x, s)
        r = Concat<axis = 0>(b, whole, m)  back = Reshape(heads, r)  y = Add(x, back) }""")
    for batch, tokens in itertools.product((1, 3), (4, 8, 12)):
        x = numbers(batch, tokens, 8)
        np.testing.assert_array_equal(model(x)["y"], x + x)
    for tokens in (3, 5, 13):
        with pytest.raises(InputError, match=r"node '.*' \(Reshape\): sizes .* cannot become"):
            model(numbers(2, tokens, 8))
