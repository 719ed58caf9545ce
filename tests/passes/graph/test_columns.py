"""Columns of values: cut where they are computed, or gathered."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from moec.ir import interpreter
from moec.passes import pipeline
from moec.passes.graph.columns import has_own_columns, keep_columns

from ..before_after import assert_shown, model_of

HEADER = "(float[T,4] x) => (float[R,N] y{more}) <{constants}> {{ {nodes} y = Elu (z) }}"
KEPT = [2, 0]


def kept(model: ir.Model) -> ir.Model:
    """The model after the last node takes columns 2 and 0 of its input alone, which are those that it had."""
    x = np.random.default_rng(0).standard_normal((5, 4), dtype=np.float32)
    expected = interpreter.run(model, {"x": x})["y"]
    pipeline.run(model, pipeline.parse("infer-shapes"))
    user = model.graph.outputs[0].producer()
    assert user is not None
    keep_columns(model.graph, user, 0, KEPT)
    user.outputs[0].shape = None
    np.testing.assert_array_equal(interpreter.run(model, {"x": x})["y"], expected[:, KEPT])
    return model


def check(constants: str, nodes: str, constants_after: str, nodes_after: str) -> None:
    model = kept(model_of(HEADER.format(constants=constants, nodes=nodes, more="")))
    model.graph.outputs[0].shape = ir.Shape(["R", "N"])
    assert_shown(model, HEADER.format(constants=constants_after, nodes=nodes_after, more=""))


CUT = {
    "a product": (
        "float[4,3] w", "z = MatMul (x, w)",
        "float[4,2] w_used", "z = MatMul (x, w_used)",
    ),
    "a transposed product": (
        "float[3,4] w, float[3] b = {1, 2, 3}", "z = Gemm <transB = 1> (x, w, b)",
        "float[2,4] w_used, float[2] b_used = {3, 1}", "z = Gemm <transB = 1> (x, w_used, b_used)",
    ),
    "one bias for all": (
        "float[4,3] w, float[1] b = {1}", "z = Gemm (x, w, b)",
        "float[4,2] w_used, float[1] b = {1}", "z = Gemm (x, w_used, b)",
    ),
    "moec.Linear": (
        "float[3,4] w, float[3] b = {1, 2, 3}", "z = moec.Linear (x, w, b)",
        "float[2,4] w_used, float[2] b_used = {3, 1}", "z = moec.Linear (x, w_used, b_used)",
    ),
    "elementwise operators": (
        "float[4,3] w, float[1,3] b = {1, 2, 3}, float s = {0.5}", "p = MatMul (x, w) a = Add (p, b) z = Mul (a, s)",
        "float[4,2] w_used, float[1,2] b_used = {3, 1}, float s = {0.5}",
        "p = MatMul (x, w_used) a = Add (p, b_used) z = Mul (a, s)",
    ),
    "rows in another shape": (
        "float[4,3] w, int64[3] split = {-1, 1, 3}, int64[2] rows = {-1, 3}",
        "p = MatMul (x, w) r = Reshape (p, split) z = Reshape (r, rows)",
        "float[4,2] w_used, int64[3] r_shape = {-1, 1, 2}, int64[2] z_shape = {-1, 2}",
        "p = MatMul (x, w_used) r = Reshape (p, r_shape) z = Reshape (r, z_shape)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CUT)
def test_columns_are_left_out_where_they_are_computed(case):
    check(*CUT[case])


GATHERED = {
    "something mixes columns": ("float[4,3] w", "p = MatMul (x, w) z = Softmax (p)", ""),
    "the matrix is computed": ("float[4,3] w, float[4,3] v", "m = Add (w, v) z = MatMul (x, m)", ""),
    "the product is used twice": ("float[4,3] w", "z = MatMul (x, w) q = Neg (z)", ", float[T,3] q"),
    "the product is an output": ("float[4,3] w", "z = MatMul (x, w)", ", float[T,3] z"),
    "an operand is a product with itself": ("float[4,3] w", "p = MatMul (x, w) z = Mul (p, p)", ""),
    "columns become others": (
        "float[4,6] w, int64[2] rows = {-1, 3}", "p = MatMul (x, w) z = Reshape (p, rows)", "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", GATHERED)
def test_columns_are_gathered_where(case):
    constants, nodes, more = GATHERED[case]
    model = model_of(HEADER.format(constants=constants, nodes=nodes, more=more))
    operators = [node.op_type for node in model.graph]
    assert [node.op_type for node in kept(model).graph] == [*operators[:-1], "Gather", "Elu"]


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ("t = MatMul (x, w) s = Sigmoid (t) z = Add (s, t)", True),
        ("n = Softmax (x) t = MatMul (n, w) z = Relu (t)", True),
        ("t = MatMul (x, w) z = Mul (t, two)", True),
        ("t = MatMul (x, w) z = Softmax (t)", False),
        ("t = MatMul (x, w) s = ReduceSum <keepdims = 1> (t, last) z = Div (t, s)", False),
    ],
    ids=["several users", "normalised rows", "a factor", "softmax over columns", "a share of the sum"],
)
def test_columns_of_their_own_depend_on_no_others(nodes: str, expected: bool) -> None:
    constants = "float[4,3] w, int64[1] last = {-1}, float two = {2}"
    model = model_of(HEADER.format(constants=constants, nodes=nodes, more=""))
    pipeline.run(model, pipeline.parse("infer-shapes"))
    user = model.graph.outputs[0].producer()
    assert user is not None and user.inputs[0] is not None
    assert has_own_columns(user.inputs[0]) is expected
