from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from moec.common.errors import MoecError
from moec.ir.dialect import LinearSpec, spec_of
from moec.ir.weight_operands import weight_inputs
from moec.ir.weights.stored import weight_runs
from moec.passes.framework.base import Report

from .before_after import check
from .stored_weights import D, apply, formats_of, last_moec_node, linear_model, relative_error

RANDOM = np.random.default_rng(0)
WEIGHT = RANDOM.normal(size=(D, 64)).astype(np.float32)
BIAS = RANDOM.normal(size=64).astype(np.float32)
TINY = "minimum=0"
BOUNDS = {"int8": 0.02, "int4": 0.15, "int4,group=32,zero_points=true": 0.12, "mxfp4": 0.15}
"""Largest relative error of the output that Gaussian weights may have."""

BODIES = {
    "matmul": ("y = MatMul (x, w)", {"w": WEIGHT}, 1),
    "gemm": ("y = Gemm (x, w)", {"w": WEIGHT}, 1),
    "gemm with a bias": ("y = Gemm <transB = 1> (x, w, b)", {"w": WEIGHT.T.copy(), "b": BIAS}, 0),
    "bias by an add": ("h = MatMul (x, w) y = Add (b, h)", {"w": WEIGHT, "b": BIAS}, 1),
    "not the last": ("h = MatMul (x, w) y = Relu (h)", {"w": WEIGHT}, 1),
    "several axes": ("h = Unsqueeze (x, zero) g = MatMul (h, w) y = Squeeze (g, zero)", {"w": WEIGHT}, 1),
}


def model_of(name: str) -> ir.Model:
    body, constants, _ = BODIES[name]
    model = linear_model(body, constants)
    zero = ir.val("zero", const_value=ir.tensor(np.array([0]), name="zero"))
    if "zero" in body:
        for node in model.graph:
            for index, value in enumerate(node.inputs):
                if value is not None and value.name == "zero":
                    node.replace_input_with(index, zero)
        model.graph.register_initializer(zero)
    return model


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("form", BOUNDS)
def test_the_product_stays_within_the_bound_of_the_format(form: str, body: str) -> None:
    model, before = model_of(body), model_of(body)
    report = apply(model, f"quantize-linears{{format={form},{TINY}}}")
    assert 0 < relative_error(model, before) < BOUNDS[form]
    assert relative_error(model, before, T=0) == 0
    (loss,) = report.losses
    assert 0 < loss.weight_error < BOUNDS[form] and 0 < loss.output_error < BOUNDS[form] and not report.remarks
    spec = spec_of(last_moec_node(model), LinearSpec)
    assert (spec.arithmetic, spec.transposed) == ("int8", bool(BODIES[body][2]))
    assert "w" not in model.graph.initializers and [value.name for value in model.graph.outputs] == ["y"]


@pytest.mark.parametrize(
    "body",
    [
        "y = Gemm <alpha = 2.0> (x, w)",
        "t = Transpose <perm = [1, 0]> (x) y = Gemm <transA = 1> (t, w)",
        "y = Gemm (x, w, row)",
        "t = Abs (w) y = MatMul (x, t)",
    ],
    ids=["alpha", "transA", "bias of one row", "computed weight"],
)
def test_other_products_stay(body: str) -> None:
    model = linear_model(body, {"w": WEIGHT, "row": BIAS[None]})
    report = apply(model, f"quantize-linears{{format=int8,{TINY}}}")
    assert all(node.domain == "" for node in model.graph)
    assert "no dense product was found with a constant weight of 0 elements" in report.remarks[0].message


@pytest.mark.parametrize(
    "body, outputs",
    [
        ("h = MatMul (x, w) y = Add (h, b) z = Relu (h)", "float[T,64] y, float[T,64] z"),
        ("h = MatMul (x, w) y = Add (h, b)", "float[T,64] y, float[T,64] h"),
        ("h = MatMul (x, w) y = Add (h, one)", "float[T,64] y"),
        ("h = MatMul (x, w) y = Add (h, h)", "float[T,64] y"),
        ("h = Gemm (x, w, b) y = Add (h, b)", "float[T,64] y"),
    ],
    ids=["used twice", "an output", "a number", "itself", "a second bias"],
)
def test_an_addition_that_is_no_bias_stays(body: str, outputs: str) -> None:
    constants = {"w": WEIGHT, "b": BIAS, "one": np.ones(1, np.float32)}
    model, before = linear_model(body, constants, outputs), linear_model(body, constants, outputs)
    apply(model, f"quantize-linears{{format=int8,{TINY}}}")
    assert [node.op_type for node in model.graph if node.op_type in ("Linear", "Add")] == ["Linear", "Add"]
    assert 0 < relative_error(model, before) < BOUNDS["int8"]


ONE = "(float[T,64] x) => (float[T,8] y) <float[64,8] w, float[8] b> {{ {} }}"


def test_a_bias_joins_the_product() -> None:
    check(
        f"quantize-linears{{format=int4,group=32,{TINY}}}",
        ONE.format("h = MatMul (x, w) y = Add (h, b)"),
        """(float[T,64] x) => (float[T,8] y) <int4[64,8] w_int4, float16[2,8] w_int4_scale, float[8] b> {
            w_decoded = DequantizeLinear <axis = 0, block_size = 32, output_dtype = 1> (w_int4, w_int4_scale)
            y = moec.Linear <transposed = 1, arithmetic = "int8", activation_group = 32> (x, w_decoded, b) }""",
    )


def test_small_weights_stay_unless_asked() -> None:
    assert check("quantize-linears{format=int8}", ONE.format("h = MatMul (x, w) y = Add (h, b)"))


ROUTER = """
    h = MatMul (x, w) s = Mul (h, scale)
    weights, experts = moec.Route <k = 2> (s)
    y = MatMul (x, w)
"""


@pytest.mark.parametrize("routers, stored", [("false", "float32"), ("true", "int8")])
def test_a_router_that_is_linear_already_stays_unless_asked(routers: str, stored: str) -> None:
    body = "h = moec.Linear <transposed = 1> (x, w) weights, experts = moec.Route <k = 2> (h)"
    model = linear_model(body, {"w": WEIGHT}, "float[T,2] weights, int32[T,2] experts")
    apply(model, f"quantize-linears{{format=int8,{TINY},routers={routers}}}")
    (node,) = [node for node in model.graph if node.op_type == "Linear"]
    (run,) = weight_runs(weight_inputs(node)["weight"])
    assert run.format.name == stored


@pytest.mark.parametrize("routers, expected", [("false", 1), ("true", 2)])
def test_the_product_that_makes_logits_stays_unless_asked(routers: str, expected: int) -> None:
    constants = {"w": WEIGHT, "scale": np.ones(1, np.float32)}
    model = linear_model(ROUTER, constants, "float[T,64] y, float[T,2] weights, int32[T,2] experts")
    apply(model, f"quantize-linears{{format=int8,{TINY},routers={routers}}}")
    assert sum(node.op_type == "Linear" for node in model.graph) == expected
    assert ("w" in model.graph.initializers) == (expected == 1), "the router still uses it"


def test_quantised_products_stay_as_they_are() -> None:
    model = model_of("matmul")
    apply(model, f"quantize-linears{{format=int8,{TINY}}}")
    again = apply(model, f"quantize-linears{{format=int4,{TINY}}}")
    assert formats_of(model) == {"weight": ["int8"]}
    assert "nothing to quantise" in again.remarks[0].message and not again.losses


def test_a_weight_that_is_not_finite_is_refused() -> None:
    weight = WEIGHT.copy()
    weight[5, 5] = np.nan
    with pytest.raises(MoecError, match="weight weight: it holds an infinity or a NaN, which int8 cannot"):
        apply(linear_model("y = MatMul (x, w)", {"w": weight}), f"quantize-linears{{format=int8,{TINY}}}")


def test_mxfp4_has_one_group() -> None:
    with pytest.raises(MoecError, match="mxfp4 has groups of 32, found group=64"):
        apply(model_of("matmul"), "quantize-linears{format=mxfp4,group=64}")


def test_report_starts_empty() -> None:
    assert Report().losses == []
