from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from moec.ir.graphs import outer_values
from moec.ir.text import parse_model, print_model
from moec.ir.verifier import verify
from moec.ir.weights.stored import constant
from moec.passes import pipeline
from moec.passes.framework.base import Report
from moec.passes.prepare_loops import PrepareLoops

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
    assert report.remarks[-1].message == (
        "this Scan runs step by step; its body is compiled as it is: MoE blocks in it are not looked for, and weights "
        "keep their format"
    )


def test_values_from_outside_become_states_of_a_loop_before_its_slices():
    text = """(float[3] s, int64 n, bool go, float[3] o) => (float[3] y, float[S,3] z) {{
        p = Neg (o)
        y, {kept}z = Loop {before}<body = b (int64 i, bool c, float[3] a{inside}) => (
                bool d, float[3] t, {outside}float[3] u) {{
            d = Not (c)  t = Add (a, e)  u = Mul (t, a){copy}
        }}> (n, go, s{given}) }}"""
    before = text.format(kept="", before="", inside="", outside="", copy="", given="").replace(
        "Add (a, e)", "Add (a, p)"
    )
    after = text.format(
        kept='"p.kept", ',
        before="",
        inside=', float[3] "p.inside"',
        outside='float[3] "p.outside", ',
        copy='  "p.outside" = Identity ("p.inside")',
        given=", p",
    ).replace("Add (a, e)", 'Add (a, "p.inside")')
    case = {"s": X[0], "n": np.array(3), "go": np.array(True), "o": X[1]}
    check("infer-shapes,prepare-loops", before, after, case)


@pytest.mark.parametrize(("axes", "slices"), [([1, -1], ["[3,4]", "[N,2]"]), ([], ["[2,4]", "[2,5]"])])
def test_inputs_of_a_scans_body_get_types_and_sizes_from_the_nodes(axes, slices):
    """A slice lacks the axis along which it is taken, which is the first one where none is said."""
    text = """(float[2] s, float[3,2,4] x, int64[N,2,5] q) => (float[2] y) { y = Scan <num_scan_inputs = 2,
        body = b (float[2] a, float[2,4] e, int64[2,5] f) => (float[2] t) { t = Neg (a) }> (s, x, q) }"""
    model = model_of(text)
    (node,) = model.graph
    node.attributes["scan_input_axes"] = ir.AttrInt64s("scan_input_axes", axes)
    inputs = node.attributes["body"].as_graph().inputs
    for value in inputs:
        value.type = value.shape = None
    PrepareLoops().apply(model, Report())
    assert [str(value.shape).replace(" ", "").replace("'", "") for value in inputs] == ["[2]", *slices]
    assert [str(value.dtype) for value in inputs] == ["FLOAT", "FLOAT", "INT64"]


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
    """The names of the body's outputs."""
    (node,) = (node for node in model.graph if node.op_type == "Scan")
    return [str(value.name) for inner in node.attributes["body"].as_graph() for value in inner.outputs]


def test_what_comes_out_is_onnx_and_reads_back_from_its_text():
    model = rewrite(SCAN.replace("BODY", "f = Add (a, p)  t = Add (f, e)  u = Celu (t)"), f"{PASSES},O1")
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    text = print_model(model)
    assert print_model(parse_model(text)) == text


def test_a_graph_without_loops_stays():
    check("prepare-loops", "(float[T] x) => (float[T] y) { k = Identity (x)  y = Relu (k) }")
