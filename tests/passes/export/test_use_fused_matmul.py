"""The pass that writes products with transposed tables as onnxruntime's FusedMatMul."""

from __future__ import annotations

import numpy as np
import pytest

from ..before_after import check

BY = "infer-shapes,use-fused-matmul"
TURNED = "t = Transpose <perm = [1, 0]> (table)"


@pytest.mark.parametrize("dtype", ["float", "float16"])
def test_products_with_the_transpose_of_a_constant(exported, normal, dtype):
    nodes = f"{TURNED} y = MatMul (x, t) z = Relu (table)"
    text = f"({dtype}[B,T,8] x) => ({dtype}[B,T,6] y, {dtype}[6,8] z) <{dtype}[6,8] table> {{ {nodes} }}"
    numbers = normal(2, 3, 8).astype(np.float32 if dtype == "float" else np.float16)
    model, _ = exported(text, {"x": numbers}, {"x": numbers[:, :0]}, by=BY)
    assert [node.op_type for node in model.graph] == ["FusedMatMul", "Relu"]


@pytest.mark.parametrize(
    "nodes",
    [f"{TURNED} w = Cast <to = 1> (t)", "u = Cast <to = 1> (table) w = Transpose <perm = [1, 0]> (u)"],
    ids=["cast last", "cast first"],
)
def test_a_cast_reads_the_constant(exported, normal, nodes):
    text = f"(float[T,8] x) => (float[T,6] y) <float16[6,8] table> {{ {nodes} y = MatMul (x, w) }}"
    model, _ = exported(text, {"x": normal(3, 8)}, by=BY)
    assert [node.op_type for node in model.graph] == ["Cast", "FusedMatMul"]


@pytest.mark.parametrize(
    ("values", "nodes"),
    [
        ("(float[T,8] x, float[6,8] table) => (float[T,6] y)", f"{TURNED} y = MatMul (x, t)"),
        ("(double[T,8] x) => (double[T,6] y) <double[6,8] table>", f"{TURNED} y = MatMul (x, t)"),
        ("(float[8,T] x) => (float[8,T] y) <float[8,8] table>", f"{TURNED} y = MatMul (t, x)"),
        ("(float[T,8] x) => (float[T,8] y) <float[8,8] table>",
         "t = Transpose <perm = [0, 1]> (table) y = MatMul (x, t)"),
        ("(float[2,T,8] x) => (float[2,T,6] y) <float[2,6,8] table>",
         "t = Transpose <perm = [0, 2, 1]> (table) y = MatMul (x, t)"),
    ],
    ids=["computed", "double", "the first operand", "not turned", "several matrices"],
)  # fmt: skip
def test_other_products_stay(values, nodes):
    check(BY, f"{values} {{ {nodes} }}")
