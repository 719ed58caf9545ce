from __future__ import annotations

import numpy as np
import onnx
import pytest

from moec.ir.opsets import NEWEST
from moec.passes.expand_functions import EXPANDED
from moec.passes.framework.base import Report

X = np.linspace(-3, 3, 12, dtype=np.float32).reshape(3, 4)
PASSES = "infer-shapes,expand-functions"


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_an_operator_becomes_its_body(rewrite, operators, rows):
    text = "(float[T,4] x) => (float[T,4] y) { y = HardSwish (x) }"
    model = rewrite(text, PASSES, {"x": X[:rows]})
    assert operators(model) == ["HardSigmoid", "Mul"]
    assert model.graph.outputs[0].name == "y" and not model.functions
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


def test_layer_normalization_without_statistics_stays(rewrite, operators):
    text = "(float[T,4] x, float[4] s) => (float[T,4] y) { y = LayerNormalization (x, s) }"
    assert operators(rewrite(text, PASSES, {"x": X, "s": X[0]})) == ["LayerNormalization"]


def test_operators_with_kernels_stay(rewrite, operators):
    text = "(float[T,4] x) => (float[T,4] y) { z = Softmax (x) y = Gelu (z) }"
    assert operators(rewrite(text, PASSES, {"x": X})) == ["Softmax", "Gelu"]


def test_a_node_of_unknown_type_stays_and_is_reported(rewrite, operators):
    report = Report()
    text = "(float[T,4] x) => (float[T,4] y) { z = com.microsoft.Unheard (x) y = LogSoftmax (z) }"
    model = rewrite(text, PASSES, report=report)
    assert operators(model) == ["Unheard", "LogSoftmax"]
    assert "types of its inputs" in report.remarks[0].message


def test_every_operator_listed_has_a_body():
    for name in EXPANDED:
        if onnx.defs.has(name, NEWEST, ""):
            schema = onnx.defs.get_schema(name, NEWEST, "")
            assert schema.has_function or schema.has_context_dependent_function
