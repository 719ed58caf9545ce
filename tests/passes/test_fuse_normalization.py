from __future__ import annotations

import numpy as np
import pytest

from .before_after import check

RANDOM = np.random.default_rng(0)
CASES = [{"x": 3 * RANDOM.standard_normal((T, 5, 8)).astype(np.float32) + 1} for T in (0, 1, 7)]
PASSES = "infer-shapes,fuse-normalization,remove-dead-nodes"
CONSTANTS = """<float[8] scale = {1, 2, 3, 4, 5, 6, 7, 8}, float[8] bias = {8, 7, 6, 5, 4, 3, 2, 1}, float two = {2.0},
    float three = {3.0}, float one = {1.0}, float minus_half = {-0.5},
    float epsilon = {0.001}, int64[1] last = {-1}, int64[1] middle = {1}>"""


def graph(body: str) -> str:
    return f"(float[T,5,8] x) => (float[T,5,8] y) {CONSTANTS} {{ {body} }}"


SQUARE = "q = Mul (x, x)"
MEAN = "m = ReduceMean (q, last) e = Add (m, epsilon) r = Sqrt (e)"
ATTRIBUTES = "axis = -1, epsilon = 0.001, stash_type = 1"
CENTRE = "mu = ReduceMean (x, last) c = Sub (x, mu) q = Mul (c, c)"


@pytest.mark.parametrize("square", [SQUARE, "q = Pow (x, two)"])
@pytest.mark.parametrize(
    "quotient",
    [
        "n = Div (x, r)",
        "i = Reciprocal (r) n = Mul (x, i)",
        "i = Div (one, r) n = Mul (i, x)",
        "i = Pow (e, minus_half) n = Mul (x, i)",
    ],
)
@pytest.mark.parametrize("product", ["y = Mul (n, scale)", "y = Mul (scale, n)"])
def test_rms_normalization_is_fused(square, quotient, product):
    after = graph(f"y = RMSNormalization <{ATTRIBUTES}> (x, scale)")
    check(PASSES, graph(f"{square} {MEAN} {quotient} {product}"), after, *CASES)


@pytest.mark.parametrize(
    "end, operands",
    [("y = Mul (n, scale)", "x, scale"), ("p = Mul (n, scale) y = Add (p, bias)", "x, scale, bias")],
)
def test_layer_normalization_is_fused(end, operands):
    after = graph(f"y = LayerNormalization <{ATTRIBUTES}> ({operands})")
    check(PASSES, graph(f"{CENTRE} {MEAN} n = Div (c, r) {end}"), after, *CASES)


@pytest.mark.parametrize("op_type, begin", [("RMSNormalization", SQUARE), ("LayerNormalization", CENTRE)])
@pytest.mark.parametrize("end", ["y = Identity ({n})", "y = Mul ({n}, x)", "y = Mul ({n}, two)"])
def test_without_a_vector_as_scale_it_is_of_ones(op_type, begin, end):
    constants = CONSTANTS.replace(">", ", float[8] n_scale = {1, 1, 1, 1, 1, 1, 1, 1}>")
    after = graph(f"n_fused = {op_type} <{ATTRIBUTES}> (x, n_scale) {end.format(n='n_fused')}")
    numerator = "c" if begin == CENTRE else "x"
    before = graph(f"{begin} {MEAN} n = Div ({numerator}, r) {end.format(n='n')}")
    check(PASSES, before, after.replace(CONSTANTS, constants), *CASES)


@pytest.mark.parametrize(
    "body",
    [
        f"q = Pow (x, three) {MEAN} n = Div (x, r) y = Mul (n, scale)",
        f"z = Relu (x) q = Mul (z, z) {MEAN} n = Div (x, r) y = Mul (n, scale)",
        f"{SQUARE} m = ReduceMean (q, middle) e = Add (m, epsilon) r = Sqrt (e) n = Div (x, r) y = Mul (n, scale)",
        f"{SQUARE} m = ReduceMean (q, last) e = Add (m, x) r = Sqrt (e) n = Div (x, r) y = Mul (n, scale)",
        f"{SQUARE} {MEAN} n = Div (r, x) y = Mul (n, scale)",
        f"{SQUARE} m = ReduceMean (q, last) e = Add (m, epsilon) i = Pow (e, one) n = Mul (x, i) y = Mul (n, scale)",
    ],
    ids=["cube", "square of another", "other axis", "epsilon not constant", "inverted", "other power"],
)
def test_what_only_looks_like_a_normalization_stays(body):
    check(PASSES, graph(body), None, *CASES)


WIDE = """w = Cast <to = 1> (x) q = Pow (w, two) m = ReduceMean (q, last) e = Add (m, epsilon) r = Sqrt (e)
    n = Div (w, r)"""


def half(scale: str, y: str, body: str) -> str:
    return f"(float16[T,8] x, {scale}[8] scale) => ({y}[T,8] y) {CONSTANTS.replace('scale =', 'other =')} {{ {body} }}"


def test_a_half_precision_input_normalised_in_float32_is_fused():
    before = half("float16", "float16", f"{WIDE} h = Cast <to = 10> (n) y = Mul (h, scale)")
    after = half("float16", "float16", f"y = RMSNormalization <{ATTRIBUTES}> (x, scale)")
    check(PASSES, before, after, {"x": np.zeros((0, 8), np.float16), "scale": np.ones(8, np.float16)})


def test_a_float32_result_of_a_half_precision_input_keeps_the_cast():
    before = half("float", "float", f"{WIDE} y = Mul (n, scale)")
    check(
        PASSES, before, half("float", "float", f"w = Cast <to = 1> (x) y = RMSNormalization <{ATTRIBUTES}> (w, scale)")
    )


def test_without_a_scale_the_cast_back_is_fused():
    before = half("float16", "float16", f"{WIDE} h = Cast <to = 10> (n) y = Add (h, scale)")
    after = half(
        "float16", "float16", f"h_fused = RMSNormalization <{ATTRIBUTES}> (x, h_scale) y = Add (h_fused, scale)"
    )
    ones = "<float16[8] h_scale = {1, 1, 1, 1, 1, 1, 1, 1}, "
    case = {"x": np.full((3, 8), 2, np.float16), "scale": np.ones(8, np.float16)}
    check(PASSES, before, after.replace("<", ones, 1), case)
