"""Logits that are a product of the layer's rows are recognised, and computed as the graph does."""

from __future__ import annotations

import numpy as np
import pytest

from moec.ir import interpreter
from moec.passes import pipeline
from moec.passes.graph.router_product import router_product

from ..before_after import model_of

GRAPH = """(float[T,2,8] x) => (float[N,4] logits, float[N,8] rows)
    <float[8,4] matrix, float[4,8] turned, float[4] bias = {{1, 2, 3, 4}}, float[1,8] ones, int64[2] shape = {{-1, 8}},
    int64[1] axes = {{0}}, int64[2] wide = {{-1, 4}}> {{
    flat = Reshape (x, shape)
    {nodes} }}"""
ROWS = "unsqueezed = Unsqueeze (x, axes) rows = Reshape (unsqueezed, shape) "
PRODUCTS = [
    "logits = MatMul (flat, matrix)",
    "logits = Gemm (flat, matrix, bias)",
    "logits = Gemm <transB = 1> (flat, turned)",
    "logits = moec.Linear (flat, turned, bias)",
    "logits = moec.Linear <transposed = 1> (flat, matrix)",
    "product = MatMul (x, matrix) logits = Reshape (product, wide)",
]
OTHERS = [
    "logits = Gemm <alpha = 2.0> (flat, matrix, bias)",
    'logits = moec.Linear <activation = "relu"> (flat, turned, bias)',
    "other = Neg (flat) logits = MatMul (other, matrix)",
    "computed = Neg (matrix) logits = MatMul (flat, computed)",
    "product = MatMul (flat, matrix) logits = Neg (product)",
]


def values(nodes: str):
    model = model_of(GRAPH.format(nodes=ROWS + nodes))
    pipeline.run(model, pipeline.parse("infer-shapes"))
    return model, *model.graph.outputs


@pytest.mark.parametrize("nodes", PRODUCTS)
def test_products_with_the_rows_are_computed(nodes):
    model, logits, rows = values(nodes)
    computed = router_product(logits, rows)
    assert computed is not None
    x = np.random.default_rng(0).normal(size=(3, 2, 8)).astype(np.float32)
    actual = interpreter.run(model, {"x": x})
    np.testing.assert_allclose(computed(actual["rows"]), actual["logits"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("nodes", OTHERS)
def test_everything_else_is_not(nodes):
    _, logits, rows = values(nodes)
    assert router_product(logits, rows) is None


def test_rows_in_another_order_are_other_rows():
    model = model_of(
        GRAPH.format(nodes="turn = Transpose <perm = [1, 0, 2]> (x) rows = Reshape (turn, shape) " + PRODUCTS[0])
    )
    pipeline.run(model, pipeline.parse("infer-shapes"))
    assert router_product(*model.graph.outputs) is None
