"""Functions in a model: operators that moec knows, bodies, and optional inputs of calls."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

import moec
from moec.common.errors import MoecError, UnsupportedError
from moec.frontend.onnx.importer import import_model
from moec.ir import local_bodies

X = np.array([[-1.5, 0.25, 2.0, 3.0]], np.float32)
OPTIONAL_BIAS = """
<domain: "local", opset_import: ["" : 21]> Biased (x, b) => (y) {
  has = OptionalHasElement (b)
  y = If (has) <then_branch: graph = g () => (t) { bias = OptionalGetElement (b)
    t = Add (x, bias) }, else_branch: graph = h () => (e) { e = Neg (x) }>
}"""
UNUSED_BIAS = """
<domain: "local", opset_import: ["" : 21]> Biased (x, b) => (y) {
  doubled = Add (b, b)
  unused = Mul (doubled, doubled)
  y = Neg (x)
}"""


def model_of(call: str, functions: str, domains: str = '"local" : 1, "com.microsoft" : 1') -> onnx.ModelProto:
    head = f'<ir_version: 10, opset_import: ["" : 21, {domains}]>'
    return onnx.parser.parse_model(f"{head} g (float[N,4] x) => (float[N,4] y) {{ y = {call} }} {functions}")


def by_onnxruntime(model: onnx.ModelProto) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": X})[0]


def compiled(model: onnx.ModelProto) -> np.ndarray:
    return moec.compile(model, threads=1).run({"x": X})["y"]


GELU = '<domain: "com.microsoft", opset_import: ["" : 21]> QuickGelu (x) => (y) { y = Add (x, x) }'


def test_an_operator_that_moec_knows_is_that_operator_whatever_its_body_says():
    model = model_of("com.microsoft.QuickGelu (x)", GELU)
    assert [node.op_type for node in import_model(model).graph] == ["QuickGelu"]
    np.testing.assert_allclose(compiled(model), by_onnxruntime(model), rtol=1e-5)


@pytest.mark.parametrize(("domain", "name"), [("local", "QuickGelu"), ("com.microsoft", "NoOperatorOfTheirs")])
def test_other_functions_are_their_bodies(domain: str, name: str):
    function = f'<domain: "{domain}", opset_import: ["" : 21]> {name} (x) => (y) {{ y = Add (x, x) }}'
    model = model_of(f"{domain}.{name} (x)", function)
    assert [node.op_type for node in import_model(model).graph] == ["Add"]


def test_a_call_that_asks_for_more_than_moec_has_becomes_the_body():
    """The call has an attribute that moec does not know."""
    call = "com.microsoft.QuickGelu <later = 1> (x)"
    model = moec.compile(model_of(call, GELU), threads=1)
    np.testing.assert_array_equal(model.run({"x": X})["y"], 2 * X)
    remarks = [remark["message"] for remark in model.describe()["remarks"]]
    assert any(
        "becomes the nodes of its body in the file: attribute later is not known" in remark for remark in remarks
    )
    with pytest.raises(UnsupportedError, match="attribute later is not known"):
        moec.compile(model_of(call, ""))


def test_a_body_whose_operators_have_changed_since_its_opset_is_not_kept():
    text = GELU.replace("21", "12").replace("Add (x, x)", "Softmax <axis = 1> (x)")
    head = '<ir_version: 8, opset_import: ["" : 12, "com.microsoft" : 1]>'
    graph = "g (float[N,4] x) => (float[N,4] y) { y = com.microsoft.QuickGelu <later = 1> (x) }"
    assert not local_bodies.of(import_model(onnx.parser.parse_model(f"{head} {graph} {text}")))


@pytest.mark.parametrize("functions", [OPTIONAL_BIAS, UNUSED_BIAS])
def test_a_call_without_an_optional_input(functions: str):
    np.testing.assert_array_equal(compiled(model_of("local.Biased (x)", functions)), -X)


def test_a_call_with_it():
    np.testing.assert_array_equal(compiled(model_of("local.Biased (x, x)", OPTIONAL_BIAS)), 2 * X)


def test_an_absent_input_that_is_needed_is_refused():
    needs = '<domain: "local", opset_import: ["" : 21]> Biased (x, b) => (y) { y = Add (x, b) }'
    with pytest.raises(MoecError, match=r"Add .* has 1 inputs; expected 2"):
        import_model(model_of("local.Biased (x)", needs))
