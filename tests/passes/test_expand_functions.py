from __future__ import annotations

import numpy as np
import onnx

from moec.ir.opsets import NEWEST
from moec.passes.expand_functions import EXPANDED
from moec.passes.framework.base import Report

from .before_after import assert_shown, check

X = np.linspace(-3, 3, 12, dtype=np.float32).reshape(3, 4)
PASSES = "infer-shapes,expand-functions"


def test_an_operator_becomes_its_body():
    check(
        PASSES,
        "(float[T,4] x) => (float[T,4] y) { y = HardSwish (x) }",
        """(float[T,4] x) => (float[T,4] y) {
            HS_X = HardSigmoid <alpha = 0.16666667, beta = 0.5> (x) y = Mul (x, HS_X) }""",
        *({"x": X[:rows]} for rows in (0, 1, 3)),
    )


def test_no_function_and_no_domain_is_added(rewrite):
    model = rewrite("(float[T,4] x) => (float[T,4] y) { y = HardSwish (x) }", PASSES)
    assert not model.functions
    assert set(model.graph.opset_imports) == {"", "com.microsoft", "moec"}


def test_attributes_that_the_node_does_not_have_have_their_defaults(rewrite, operators):
    cases = {"x": X}
    for attributes in ("", "<lambd = 1.0, bias = 0.5>"):
        model = rewrite(f"(float[T,4] x) => (float[T,4] y) {{ y = Shrink {attributes} (x) }}", PASSES, cases)
        assert "Shrink" not in operators(model)


def test_bodies_are_expanded_too(rewrite, operators):
    text = """(float[T,4] x, int64[T] i) => (float y) { y = SoftmaxCrossEntropyLoss (x, i) }"""
    model = rewrite(text, PASSES, {"x": X, "i": np.array([0, 3, 1])})
    assert not EXPANDED & set(operators(model))


def test_layer_normalization_with_statistics(rewrite, operators):
    text = "(float[T,4] x, float[4] s) => (float[T,4] y, float[T,1] m) { y, m = LayerNormalization (x, s) }"
    assert "LayerNormalization" not in operators(rewrite(text, PASSES, {"x": X, "s": X[0]}))


def test_layer_normalization_without_statistics_stays():
    check(PASSES, "(float[T,4] x, float[4] s) => (float[T,4] y) { y = LayerNormalization (x, s) }")


def test_operators_with_kernels_stay():
    check(PASSES, "(float[T,4] x) => (float[T,4] y) { z = Softmax (x) y = Gelu (z) }")


def test_a_node_of_unknown_type_stays_and_is_reported(rewrite):
    report = Report()
    text = "(float[T,4] x) => (float[T,4] y) { z = com.microsoft.Unheard (x) y = LogSoftmax (z) }"
    model = rewrite(text, PASSES, report=report)
    assert_shown(model, text)
    assert "types of its inputs" in report.remarks[0].message


def test_every_operator_listed_has_a_body():
    for name in EXPANDED:
        if onnx.defs.has(name, NEWEST, ""):
            schema = onnx.defs.get_schema(name, NEWEST, "")
            assert schema.has_function or schema.has_context_dependent_function
