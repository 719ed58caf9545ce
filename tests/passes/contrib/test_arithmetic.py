"""Fused activations, products and normalisations against onnxruntime."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.mark.parametrize(
    ("node", "operators"),
    [
        ("y = com.microsoft.Gelu (x)", ["Gelu"]),
        ("y = com.microsoft.BiasGelu (x, b)", ["Add", "Gelu"]),
        ("y = com.microsoft.FastGelu (x)", ["Gelu"]),
        ("y = com.microsoft.FastGelu (x, b)", ["Add", "Gelu"]),
        ("y = com.microsoft.QuickGelu <alpha = 1.5> (x)", ["Swish"]),
    ],
)
def test_activations(decompose, normal, operators, node):
    model = decompose(f"(float[T,8] x) => (float[T,8] y) {{ {node} }}", {"x": normal(5, 8)}, {"b": normal(8)})
    assert [node.op_type for node in model.graph] == operators


@pytest.mark.parametrize("attributes", ["", "<transA = 1>", "<transB = 1, alpha = 0.5>", "<transA = 1, transB = 1>"])
@pytest.mark.parametrize("batches", ["", "transBatchA = 1", "transBatchA = 1, transBatchB = 1"])
def test_fused_matmul(decompose, attributes, batches, normal):
    given = ", ".join(part for part in (attributes.strip("<>"), batches) if part)
    a, b = ((4, 3) if "transA" in attributes else (3, 4)), ((5, 4) if "transB" in attributes else (4, 5))
    left = (a[0], 2, a[1]) if "transBatchA" in batches else (2, *a)
    right = (b[0], 2, b[1]) if "transBatchB" in batches else (2, *b)
    shapes = [",".join(map(str, shape)) for shape in (left, right)]
    text = f"(float[{shapes[0]}] a, float[{shapes[1]}] b) => (float[2,3,5] y) {{ y = com.microsoft.FusedMatMul"
    decompose(f"{text} {f'<{given}>' if given else ''} (a, b) }}", {"a": normal(*left), "b": normal(*right)})


@pytest.mark.parametrize("bias", [", bias", ""])
def test_skip_simplified_layer_normalization(decompose, normal, bias):
    operator = "com.microsoft.SkipSimplifiedLayerNormalization <epsilon = 0.001>"
    text = f'(float[B,T,8] x, float[B,T,8] s) => (float[B,T,8] y, float[B,T,8] z) {{ y, "", "", z = {operator} (x, s, g'
    decompose(f"{text}{bias}) }}", {"x": normal(2, 3, 8), "s": normal(2, 3, 8)}, {"g": normal(8), "bias": normal(8)})


@pytest.mark.parametrize("rest", ["", ", h", ", h, bias"])
def test_skip_layer_normalization(decompose, normal, rest):
    operator = "com.microsoft.SkipLayerNormalization <epsilon = 0.001>"
    text = f'(float[B,T,8] x, float[B,T,8] s) => (float[B,T,8] y, float[B,T,8] z) {{ y, "", "", z = {operator} (x, s, g'
    constants = {"g": normal(8), "h": normal(8), "bias": normal(8)}
    model = decompose(f"{text}{rest}) }}", {"x": normal(2, 3, 8), "s": normal(2, 3, 8)}, constants)
    assert model.graph.outputs[1].name == "z"


def test_half_precision(decompose, normal):
    operator = "com.microsoft.QuickGelu"
    text = f"(float16[T,8] x) => (float16[T,8] y) {{ y = {operator} (x) }}"
    decompose(text, {"x": normal(5, 8).astype(np.float16)}, tolerance=2e-3)


@pytest.mark.parametrize(
    ("attributes", "operator"),
    [
        ('activation = "Relu"', "Relu"),
        ('activation = "Tanh", transA = 1, transB = 1, alpha = 0.5, beta = 2.0', "Tanh"),
        ('activation = "LeakyRelu", activation_alpha = 0.3', "LeakyRelu"),
        ('activation = "HardSigmoid", activation_alpha = 0.3, activation_beta = 0.4', "HardSigmoid"),
        ('activation = "Selu", activation_alpha = 1.5, activation_gamma = 0.7', "Selu"),
    ],
)
def test_fused_gemm(decompose, normal, attributes, operator):
    """The activation's own attributes, not those of the product, which have the same names."""
    a, b = ((4, 3), (5, 4)) if "transA" in attributes else ((3, 4), (4, 5))
    node = f"y = com.microsoft.FusedGemm <{attributes}> (a, b, c)"
    text = f"(float[{a[0]},{a[1]}] a) => (float[3,5] y) {{ {node} }}"
    model = decompose(text, {"a": normal(*a)}, {"b": normal(*b), "c": normal(5)})
    assert [node.op_type for node in model.graph] == ["Gemm", operator]


def test_fused_gemm_without_addend(decompose, normal):
    text = '(float[T,4] a) => (float[T,5] y) { y = com.microsoft.FusedGemm <activation = "Relu"> (a, b) }'
    decompose(text, {"a": normal(3, 4)}, {"b": normal(4, 5)})


@pytest.mark.parametrize("dtype", ["float", "float16"])
def test_statistics_of_layer_normalization(decompose, normal, dtype):
    """They are float32 whatever the type of x is, and include epsilon."""
    operator = "com.microsoft.SkipLayerNormalization <epsilon = 0.1>"
    text = f"({dtype}[B,T,8] x, {dtype}[B,T,8] s) => ({dtype}[B,T,8] y, float[B,T,1] m, float[B,T,1] d)"
    inputs, scale = {"x": normal(2, 3, 8), "s": normal(2, 3, 8)}, {"g": normal(8)}
    if dtype == "float16":
        inputs, scale = ({name: one.astype(np.float16) for name, one in arrays.items()} for arrays in (inputs, scale))
    decompose(f"{text} {{ y, m, d = {operator} (x, s, g) }}", inputs, scale, tolerance=2e-3)


def test_statistics_of_rms_normalization(decompose, normal):
    operator = "com.microsoft.SkipSimplifiedLayerNormalization <epsilon = 0.1>"
    text = f'(float[T,8] x, float[T,8] s) => (float[T,8] y, float[T,1] d) {{ y, "", d = {operator} (x, s, g) }}'
    decompose(text, {"x": normal(3, 8), "s": normal(3, 8)}, {"g": normal(8)})
