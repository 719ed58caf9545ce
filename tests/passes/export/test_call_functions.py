"""The pass that gives the dialect's operators functions, and the pass that checks them."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from moec.exporting.onnx_file import finish
from moec.frontend.onnx.importer import import_model
from moec.ir import interpreter
from moec.passes import pipeline
from moec.passes.framework.base import Report

from ..before_after import model_of
from .test_use_moe import GATED, cases, layer, operators

BY = pipeline.FOR_ONNX
ROWS = """(float[T,8] x, float[T,5] logits) => (float[T,6] y) <float[5,8,6] a, float[5,6] b> {
   w, e = moec.Route <k = 2> (logits)
   offsets, positions, tokens, owners = moec.Dispatch <expert_count = 5> (e)
   rows = Gather <axis = 0> (x, tokens)
   own = moec.GroupedMatMul <arithmetic = "int8"> (rows, a, offsets, b)
   y = moec.Combine (own, w, positions)
}"""
PRODUCTS = """(float[T,8] x, float[T,5] logits) => (float[T,4] y, float[T,4] z, float[T,5] l)
   <float[4,8] a, float[4] b> {
   y = moec.Linear <arithmetic = "int8", activation_group = 4> (x, a, b)
   z = moec.Linear (x, a)
   l = moec.RoundRows (logits)
}"""


@pytest.mark.parametrize(
    ("text", "called"),
    [
        (layer('k = 3, score = "sigmoid", normalize = 1, threshold = 0.2'), ["Route", "Experts"]),
        (layer(experts='gate_layout = "separate"', weights="up, down, gate", declared=GATED["separate"]),
         ["Route", "Experts"]),
        (ROWS, ["Route", "Dispatch", "GroupedMatMul", "Combine"]),
        (PRODUCTS, ["Linear", "RoundRows"]),
    ],
)  # fmt: skip
def test_onnx_and_onnxruntime_take_functions_and_they_are_read_back(exported, normal, text, called):
    model, report = exported(text, *cases(normal), by=BY)
    assert operators(model) == called and not report.remarks
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    again, report = import_model(proto), Report()
    assert [node.overload for node in again.graph if node.domain] == [""] * len(called)
    pipeline.run(again, pipeline.parse("infer-shapes,check-functions"), report)
    assert operators(again) == called and not report.remarks


def test_nodes_with_the_same_attributes_and_types_share_a_function():
    text = """(float[T,8] a, float[T,8] b, float[T,4] c) => (float[T,2] v, float[T,2] w, float[T,2] x) {
       v, d = moec.Route <k = 2> (a)
       w, e = moec.Route <k = 2> (b)
       x, f = moec.Route <k = 2> (c)
    }"""
    model = model_of(text)
    pipeline.run(model, pipeline.parse("infer-shapes,call-functions"))
    assert [node.overload for node in model.graph] == ["", "", "2"] and len(model.functions) == 2
    finish(model)
    again, report = import_model(ir.to_proto(model)), Report()
    pipeline.run(again, pipeline.parse("infer-shapes,check-functions"), report)
    assert operators(again) == ["Route"] * 3 and not report.remarks
    assert [node.overload for node in again.graph] == [""] * 3


def test_an_arithmetic_that_onnx_cannot_spell_has_no_function():
    model, report = model_of(layer(experts='arithmetic = "tf32"')), Report()
    pipeline.run(model, pipeline.parse("infer-shapes,call-functions"), report)
    assert [node.op_type for node in model.graph if node.op_identifier() in model.functions] == ["Route"]
    assert [remark.message for remark in report.remarks] == [
        "has no function: stays as it is: ONNX does not round to tf32"
    ]


def test_a_number_that_float32_does_not_have_stays_in_the_body(normal):
    """The file's attribute is another number, so the call is not believed."""
    text = """(double[T,4] x) => (double[T,2] w, int32[T,2] e) {
       w, e = moec.Route <k = 2, scale = 0.3333333333333> (x)
    }"""
    model, report, feeds = model_of(text), Report(), {"x": normal(5, 4).astype(np.float64)}
    expected = interpreter.run(model, feeds)
    pipeline.run(model, pipeline.parse("infer-shapes,call-functions"))
    finish(model)
    again = import_model(ir.to_proto(model))
    pipeline.run(again, pipeline.parse("infer-shapes,check-functions"), report)
    assert operators(again) == [] and [remark.pass_name for remark in report.remarks] == ["check-functions"]
    np.testing.assert_allclose(interpreter.run(again, feeds)["w"], expected["w"], rtol=1e-14)
