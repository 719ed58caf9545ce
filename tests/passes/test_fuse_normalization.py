from __future__ import annotations

import numpy as np
import pytest

RANDOM = np.random.default_rng(0)
CASES = [{"x": 3 * RANDOM.standard_normal((T, 5, 8)).astype(np.float32) + 1} for T in (0, 1, 7)]
PASSES = "infer-shapes,fuse-normalization,remove-dead-nodes"
CONSTANTS = """<float[8] scale = {1, 2, 3, 4, 5, 6, 7, 8}, float[8] bias = {8, 7, 6, 5, 4, 3, 2, 1}, float two = {2.0},
    float three = {3.0}, float one = {1.0}, float epsilon = {0.001}, int64[1] last = {-1}, int64[1] middle = {1}>"""


def graph(body: str) -> str:
    return f"(float[T,5,8] x) => (float[T,5,8] y) {CONSTANTS} {{ {body} }}"


SQUARE = "q = Mul (x, x)"
MEAN = "m = ReduceMean (q, last) e = Add (m, epsilon) r = Sqrt (e)"
CENTRE = "mu = ReduceMean (x, last) c = Sub (x, mu) q = Mul (c, c)"


@pytest.mark.parametrize("square", [SQUARE, "q = Pow (x, two)"])
@pytest.mark.parametrize(
    "quotient", ["n = Div (x, r)", "i = Reciprocal (r) n = Mul (x, i)", "i = Div (one, r) n = Mul (i, x)"]
)
@pytest.mark.parametrize("product", ["y = Mul (n, scale)", "y = Mul (scale, n)"])
def test_rms_normalization_is_fused(rewrite, operators, square, quotient, product):
    model = rewrite(graph(f"{square} {MEAN} {quotient} {product}"), PASSES, *CASES)
    assert operators(model) == ["RMSNormalization"]
    assert model.graph.node(0).attributes.get_float("epsilon") == pytest.approx(0.001)


@pytest.mark.parametrize("end", ["y = Mul (n, scale)", "p = Mul (n, scale) y = Add (p, bias)"])
def test_layer_normalization_is_fused(rewrite, operators, end):
    model = rewrite(graph(f"{CENTRE} {MEAN} n = Div (c, r) {end}"), PASSES, *CASES)
    assert operators(model) == ["LayerNormalization"]


@pytest.mark.parametrize(
    "body",
    [
        f"q = Pow (x, three) {MEAN} n = Div (x, r) y = Mul (n, scale)",
        f"z = Relu (x) q = Mul (z, z) {MEAN} n = Div (x, r) y = Mul (n, scale)",
        f"{SQUARE} m = ReduceMean (q, middle) e = Add (m, epsilon) r = Sqrt (e) n = Div (x, r) y = Mul (n, scale)",
        f"{SQUARE} m = ReduceMean (q, last) e = Add (m, x) r = Sqrt (e) n = Div (x, r) y = Mul (n, scale)",
        f"{SQUARE} {MEAN} n = Div (r, x) y = Mul (n, scale)",
        f"{SQUARE} {MEAN} n = Div (x, r) y = Mul (n, x)",
        f"{SQUARE} {MEAN} n = Div (x, r) y = Mul (n, two)",
    ],
    ids=["cube", "square of another", "other axis", "epsilon not constant", "inverted", "scale not a vector", "scalar"],
)
def test_what_only_looks_like_a_normalization_stays(rewrite, operators, body):
    model = rewrite(graph(body), PASSES)
    assert not {"RMSNormalization", "LayerNormalization"} & set(operators(model))


def test_a_half_precision_input_normalised_in_float32_is_fused(rewrite, operators):
    text = """(float16[T,8] x, float16[8] scale) => (float16[T,8] y)
        <float two = {2.0}, float epsilon = {0.001}, int64[1] last = {-1}> {
        w = Cast <to = 1> (x) q = Pow (w, two) m = ReduceMean (q, last) e = Add (m, epsilon) r = Sqrt (e)
        n = Div (w, r) h = Cast <to = 10> (n) y = Mul (h, scale) }"""
    assert operators(rewrite(text, PASSES)) == ["RMSNormalization"]


def test_a_float32_result_of_a_half_precision_input_keeps_the_cast(rewrite, operators):
    text = """(float16[T,8] x, float[8] scale) => (float[T,8] y)
        <float two = {2.0}, float epsilon = {0.001}, int64[1] last = {-1}> {
        w = Cast <to = 1> (x) q = Pow (w, two) m = ReduceMean (q, last) e = Add (m, epsilon) r = Sqrt (e)
        n = Div (w, r) y = Mul (n, scale) }"""
    model = rewrite(text, PASSES)
    assert operators(model) == ["Cast", "RMSNormalization"]
