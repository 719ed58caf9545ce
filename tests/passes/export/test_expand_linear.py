"""The pass that spells dense products, which onnxruntime runs."""

from __future__ import annotations

import numpy as np
import pytest

from ...products import thinned
from ..before_after import check
from .test_use_moe import operators

K, N = 12, 6


def product(attributes: str = "", inputs: str = "x, w, b") -> str:
    shape = f"{K},{N}" if "transposed" in attributes else f"{N},{K}"
    node = f"y = moec.Linear <{attributes}> ({inputs})".replace("<>", "")
    return f"(float[B,T,{K}] x) => (float[B,T,{N}] y) <float[{shape}] w, float[{N}] b> {{ {node} }}"


@pytest.mark.parametrize("attributes", ["", "transposed = 1", 'activation = "silu"', 'activation = "gelu_tanh"'])
@pytest.mark.parametrize("inputs", ["x, w", "x, w, b"])
def test_products(exported, normal, attributes, inputs):
    model, _ = exported(product(attributes, inputs), {"x": normal(2, 3, K)}, {"x": normal(1, 0, K)})
    assert operators(model) == []


FORMATS = ["int8", "int8,group=4,zero_points=true", "int6", "int4,group=4", "int4,zero_points=true", "int3", "int2",
           "mxfp4", "nvfp4", "fp4", "fp8"]  # fmt: skip


@thinned("form", FORMATS, 3)
@pytest.mark.parametrize("attributes", ["", "transposed = 1"])
def test_formats_that_the_operator_of_onnxruntime_does_not_take(exported, normal, form, attributes):
    """onnxruntime decodes none in its runs, nor does it round rows."""
    passes = f"quantize-linears{{format={form}}},keep-rows"
    model, _ = exported(product(attributes), {"x": normal(2, 3, K)}, passes=passes, by="expand-linear")
    assert operators(model) == [] and "DequantizeLinear" not in [node.op_type for node in model.graph]


def test_other_types_of_numbers(exported, normal):
    text = product().replace("float[", "float16[")
    exported(text, {"x": normal(2, 3, K).astype(np.float16)}, tolerance=2e-3)
    exported(product().replace("float[", "double["), {"x": normal(2, 3, K).astype(np.float64)}, tolerance=1e-12)


def test_other_operators_stay():
    check("expand-linear", "(float[T,8] x) => (float[T,4] y) <float[8,4] w> { y = MatMul (x, w) }")
