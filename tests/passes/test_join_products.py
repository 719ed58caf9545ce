"""Products of the same rows become one; those that cannot share its columns stay."""

from __future__ import annotations

import numpy as np
import pytest

from .before_after import check, rewrite

RANDOM = np.random.default_rng(0)
CASES = [{"x": RANDOM.normal(size=(2, S, 32)).astype(np.float32)} for S in (0, 1, 5)]
PASSES = "infer-shapes,fuse-stored-weights,join-products"


def graph(body: str, constants: str = "float[32,8] a, float[32,16] b") -> str:
    return f"(float[2,S,32] x) => (float[2,S,8] y, float[2,S,16] z) <{constants}> {{ {body} }}"


def products(text: str, passes: str = PASSES) -> list[str]:
    model = rewrite(text, passes, *({"x": case["x"] / 100} for case in CASES))
    return [node.op_type for node in model.graph if node.op_type in ("MatMul", "Gemm", "Linear")]


def test_gate_and_up_are_columns_of_one_product():
    body = "g = MatMul (x, a) u = MatMul (x, b) y = Sigmoid (g) z = Tanh (u)"
    after = """
        g_joined = MatMul (x, a_joined) g, u = Split <axis = -1> (g_joined, a_joined_parts)
        y = Sigmoid (g) z = Tanh (u)
    """
    check(PASSES, graph(body), graph(after, "float[32,24] a_joined, int64[2] a_joined_parts = {8, 16}"), *CASES)


def test_matrices_of_one_format_are_joined_as_they_are_stored():
    body = """
        v = DequantizeLinear <axis = 0, block_size = 32> (a, s)
        w = DequantizeLinear <axis = 0, block_size = 32> (b, t)
        g = MatMul (x, v) u = MatMul (x, w) y = Sigmoid (g) z = Tanh (u)
    """
    constants = "int8[32,8] a, float[1,8] s, int8[32,16] b, float[1,16] t"
    assert products(graph(body, constants)) == ["Linear"]
    other = constants.replace("int8[32,16] b", "uint8[32,16] b")
    assert len(products(graph(body, other))) == 2
    smaller = body.replace("32> (b", "16> (b"), constants.replace("float[1,16] t", "float[2,16] t")
    assert len(products(graph(*smaller))) == 2


@pytest.mark.parametrize(
    "body",
    [
        "y = MatMul (x, a) u = MatMul (x, b) z = Tanh (u)",  # a result of the model
        "r = Neg (x) g = MatMul (r, a) u = MatMul (x, b) y = Sigmoid (g) z = Tanh (u)",  # other rows
        "g = MatMul (x, a) u = MatMul (x, b) y = Softmax (g) z = Tanh (u)",  # a softmax would need a copy
        "g = MatMul (x, a) u = MatMul (x, b) h = MatMul (u, c) y = Sigmoid (g) z = Tanh (h)",  # as would a product
        "g = MatMul (x, a) u = MatMul (x, b) y = Sigmoid (g) v = Tanh (u) m = ReduceMax (b) z = Add (v, m)",
    ],
)
def test_what_stays(body):
    constants = "float[32,8] a, float[32,16] b, float[16,16] c"
    assert "Split" not in [node.op_type for node in rewrite(graph(body, constants), PASSES, *CASES).graph]


def test_biases_are_joined_where_all_have_one():
    text = """(float[T,32] x) => (float[T,8] y, float[T,16] z)
        <float[8,32] a, float[16,32] b, float[8] c, float[16] d> {{
        g = Gemm <transB = 1> (x, a, c) u = Gemm <transB = 1> (x, b{}) y = Sigmoid (g) z = Tanh (u) }}"""
    rows = {"x": CASES[2]["x"][0]}
    for bias, count in ((", d", 1), ("", 2)):
        graph_after = rewrite(text.format(bias), PASSES, rows).graph
        assert [node.op_type for node in graph_after].count("Gemm") == count


SPLIT = """(float[2,S,32] x) => (float[2,S,2,4] q, float[2,S,1,4] k)
    <float[32,12] a, int64[2] c = {8, 4}, int64[4] m = {0, 0, 2, 4}, int64[4] n = {0, 0, 1, 4}, float low = {-0.5}> {
    p = MatMul (x, a) %s h, i = Split <axis = -1> (%s, c)
    r = Reshape (h, m) s = Reshape (i, n) q = Neg (r) k = Neg (s)
}"""


@pytest.mark.parametrize("operator", ["", "b = Clip (p, low)", "b = Clip (p, low) d = Tanh (b)"])
def test_a_product_that_the_graph_splits_is_split_into_heads(operator):
    last = {"": "p", "b = Clip (p, low)": "b"}.get(operator, "d")
    model = rewrite(SPLIT % (operator, last), PASSES, *CASES)
    kinds = [node.op_type for node in model.graph]
    assert kinds.count("Reshape") == 1
    assert kinds.count("Clip") == kinds.count("Neg") * ("Clip" in operator)
    (split,) = (node for node in model.graph if node.op_type == "Split")
    assert split.attributes.get_int("axis") == -2


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("k = Neg (s)", "u = Neg (i) v = Reshape (u, n) k = Add (s, v)"),  # a part has another reader
        ("int64[4] n = {0, 0, 1, 4}", "int64[4] n = {0, 0, 2, 2}"),  # heads of two sizes
    ],
)
def test_what_is_split_otherwise_stays(old, new):
    text = (SPLIT % ("", "p")).replace(old, new)
    if "2, 2}" in new:
        text = text.replace("float[2,S,1,4] k", "float[2,S,2,2] k")
    assert [node.op_type for node in rewrite(text, PASSES, *CASES).graph].count("Reshape") >= 2


def test_operators_of_rows_stay_before_the_split():
    kinds = [node.op_type for node in rewrite(SPLIT % ("d = Softmax (p)", "d"), PASSES, *CASES).graph]
    assert kinds[:4] == ["MatMul", "Softmax", "Reshape", "Split"]


@pytest.mark.parametrize("axis", [-1, 1])
def test_a_split_goes_before_the_transpose_that_it_alone_reads(axis):
    text = """(float[2,S,8,4] x) => (float[2,{a},S,{b}] y, float[2,{a},S,{b}] z, {more})
        <int64[2] c = {{{half}, {half}}}> {{
        t = Transpose <perm = [0, 2, 1, 3]> (x) h, i = Split <axis = {axis}> (t, c)
        y = Neg (h) z = Neg (i) {other}
    }}"""
    a, b, half = (8, 2, 2) if axis == -1 else (4, 4, 4)
    sizes = {"a": a, "b": b, "half": half, "axis": axis}
    values = {"x": RANDOM.normal(size=(2, 3, 8, 4)).astype(np.float32)}
    plain = text.replace(", {more}", "").format(other="", **sizes)
    assert [node.op_type for node in rewrite(plain, PASSES, values).graph][:3] == ["Split", "Transpose", "Transpose"]
    read = text.format(other="w = Abs (t)", more="float[2,8,S,4] w", **sizes)
    assert [node.op_type for node in rewrite(read, PASSES, values).graph][:2] == ["Transpose", "Split"]
