from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from moec.ir.graphs import outer_values
from moec.ir.text import parse_model, print_model
from moec.ir.verifier import verify
from moec.ir.weights.stored import constant
from moec.passes.framework import pipeline
from moec.passes.framework.base import Report

from .before_after import check, model_of, rewrite

PASSES = "infer-shapes,inline-control-flow,prepare-loops"
X = np.linspace(-2, 3, 12, dtype=np.float32).reshape(4, 3)
CASE = {"s": X[0], "x": X, "o": X[1]}
SCAN = """(float[3] s, float[T,3] x, float[3] o) => (float[3] y, float[T,3] z) <float[3] w = {1, 2, 3}> {
    p = Neg (o)
    y, z = Scan <num_scan_inputs = 1,
        body = b (float[3] a, float[3] e) => (float[3] t, float[3] u) { BODY }> (s, x) }"""


def prepared(body: str):
    """The node, and the report."""
    model, report = model_of(SCAN.replace("BODY", body)), Report()
    pipeline.run(model, pipeline.parse(PASSES), report, verify_each=True)
    verify(model)
    (node,) = (node for node in model.graph if node.op_type == "Scan")
    return node, report


def test_values_from_outside_become_states_before_those_that_are_scanned():
    check(
        "infer-shapes,prepare-loops",
        SCAN.replace("BODY", "f = Add (a, p)  t = Add (f, e)  u = Mul (t, w)"),
        """(float[3] s, float[T,3] x, float[3] o) => (float[3] y, float[T,3] z) <float[3] w = {1, 2, 3}> {
            p = Neg (o)
            y, "p.kept", z = Scan <num_scan_inputs = 1, body = b (float[3] a, float[3] "p.inside", float[3] e) => (
                    float[3] t, float[3] "p.outside", float[3] u) {
                f = Add (a, "p.inside")  t = Add (f, e)  u = Mul (t, w)  "p.outside" = Identity ("p.inside")
            }> (s, p, x) }""",
        CASE,
    )


def test_a_body_that_reads_its_inputs_and_constants_keeps_them():
    node, _ = prepared("t = Add (a, e)  u = Mul (t, w)")
    assert len(node.inputs) == 2 and len(node.outputs) == 2
    assert all(constant(value) is not None for value in outer_values(node.attributes["body"].as_graph()))


def test_bodies_are_cleaned_up_and_said_to_hold_no_block():
    node, report = prepared("r = Relu (e)  k = Identity (a)  t = Add (k, e)  q = Celu (t)  u = Identity (q)")
    operators = {inner.op_type for inner in node.attributes["body"].as_graph()}
    assert "Add" in operators and operators.isdisjoint({"Relu", "Identity", "Celu"})
    assert (
        "runs step by step; its body is compiled as it is: MoE blocks in it are not looked for"
        in report.remarks[-1].message
    )


def test_names_that_clean_up_makes_are_of_no_value_outside():
    """A function in a body becomes nodes whose names are new there; here a value outside has one of them."""
    text = SCAN.replace("BODY", "t = Add (a, e)  u = MeanVarianceNormalization <axes = [0]> (t)")
    text = text.replace("float[T,3] z)", "float[T,3] z, float[3] v)")
    alone = _made(rewrite(text.replace("p = Neg (o)", "v = Neg (o)"), PASSES))
    name = next(name for name in alone if name not in ("t", "u"))
    other = rewrite(text.replace("p = Neg (o)", f'"{name}" = Neg (o)  v = Neg ("{name}")'), PASSES, CASE)
    assert name not in _made(other) and "MeanVarianceNormalization" not in {
        node.op_type for node in other.graph.all_nodes()
    }


def _made(model: ir.Model) -> list[str]:
    """The names of what the body makes."""
    (node,) = (node for node in model.graph if node.op_type == "Scan")
    return [str(value.name) for inner in node.attributes["body"].as_graph() for value in inner.outputs]


def test_what_comes_out_is_onnx_and_reads_back_from_its_text():
    model = rewrite(SCAN.replace("BODY", "f = Add (a, p)  t = Add (f, e)  u = Celu (t)"), f"{PASSES},O1")
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    text = print_model(model)
    assert print_model(parse_model(text)) == text


def test_a_graph_without_loops_stays():
    check("prepare-loops", "(float[T] x) => (float[T] y) { k = Identity (x)  y = Relu (k) }")
