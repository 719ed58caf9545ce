"""Exports as standard ONNX, judged by ONNX's own tools and onnxruntime, and read back."""

from __future__ import annotations

import pathlib

import numpy as np
import onnx
import onnx.inliner
import onnx.reference
import pytest

import moec
from moec.common.errors import MoecError
from moec.compiling.compiler import find_blocks, import_model
from moec.ir import interpreter
from moec.passes import pipeline
from moec.passes.framework.base import Report
from moec.passes.framework.shorthand import with_formats
from moec.tools.reference import open_session, run_session

from .conftest import D

Array = np.ndarray
CHECKED = "infer-shapes,check-functions"


def rows(tokens: int) -> dict[str, Array]:
    return {"x": np.random.default_rng(tokens).normal(size=(tokens, D)).astype(np.float32)}


@pytest.fixture(scope="module", params=[None, "int4/16z"])
def exported(request, model_path, tmp_path_factory) -> tuple[pathlib.Path, str | None]:
    """The layer as a file of standard ONNX, with the format of its experts."""
    output = tmp_path_factory.mktemp("standard") / "out.onnx"
    result = moec.export(model_path, output, form="onnx", experts=request.param)
    assert [part.written_as for part in result.parts] == ["moec.MoE"]
    return output, request.param


def test_onnx_and_onnxruntime_take_it(exported, model_path):
    output, experts = exported
    model = onnx.load(output)
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {"", "moec"}
    (function,) = model.functions
    assert {node.domain for node in function.node} == {""} and "k = 2" in function.doc_string
    inlined = onnx.inliner.inline_local_functions(model)
    assert not inlined.functions and {node.domain for node in inlined.graph.node} == {""}
    onnx.save(inlined, output.with_name("inlined.onnx"))
    sessions = [open_session(path, 1) for path in (output, output.with_name("inlined.onnx"))]
    reference = onnx.reference.ReferenceEvaluator(model)
    original = open_session(model_path, 1)
    for tokens in (5, 1, 0):
        actual, flat = (run_session(session, rows(tokens))["y"] for session in sessions)
        np.testing.assert_array_equal(actual, flat)
        np.testing.assert_allclose(
            actual, run_session(original, rows(tokens))["y"], rtol=0, atol=0.3 if experts else 1e-5
        )
        if tokens:
            np.testing.assert_allclose(actual, reference.run(None, rows(tokens))[0], rtol=0, atol=1e-5)


def test_it_is_read_back_without_raising(exported, model_path):
    output, experts = exported
    (block,), _ = find_blocks(output)
    (original,), _ = find_blocks(model_path)
    assert block["formulation"] == "moec.MoE"
    assert all(block[name] == original[name] for name in ("num_experts", "top_k", "activation", "intermediate_size"))
    passes = (with_formats("O2", experts, None), CHECKED)
    expected, actual = (results(path, chain, rows(5)) for path, chain in zip((model_path, output), passes, strict=True))
    np.testing.assert_array_equal(actual, expected)


def results(source: pathlib.Path | onnx.ModelProto, passes: str, feeds: dict[str, Array]) -> Array:
    model = import_model(source, None, None, None)
    pipeline.run(model, pipeline.parse(passes))
    return interpreter.run(model, feeds)["y"]


def edited(path: pathlib.Path, name: str, value: object) -> onnx.ModelProto:
    """The file with another attribute at the call."""
    model = onnx.load(path)
    (call,) = (node for node in model.graph.node if node.domain == "moec")
    for attribute in [attribute for attribute in call.attribute if attribute.name == name]:
        call.attribute.remove(attribute)
    call.attribute.append(onnx.helper.make_attribute(name, value))
    return model


def test_a_function_computes_what_its_body_says(exported):
    """Another number of experts per token at the call changes nothing."""
    output, _ = exported
    model = edited(output, "k", 3)
    graph, report = import_model(model, None, None, None), Report()
    pipeline.run(graph, pipeline.parse(CHECKED), report)
    assert not [node for node in graph.graph if node.domain]
    assert [remark.severity for remark in report.remarks] == ["warning"]
    expected = results(output, CHECKED, rows(5))
    np.testing.assert_allclose(interpreter.run(graph, rows(5))["y"], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "value", "message"), [("k", 9, "k"), ("score", "best", "score"), ("kk", 2, "kk")])
def test_attributes_that_the_operator_does_not_take_are_refused(exported, name, value, message):
    with pytest.raises(MoecError, match=message):
        import_model(edited(exported[0], name, value), None, None, None)


def test_a_call_takes_the_values_of_its_function(exported):
    """Attributes that the call leaves out are those of the function."""
    model = onnx.load(exported[0])
    (call,) = (node for node in model.graph.node if node.domain == "moec")
    del call.attribute[:]
    graph = import_model(model, None, None, None)
    (node,) = (node for node in graph.graph if node.domain == "moec")
    assert node.attributes["k"].as_int() == 2 and node.attributes["activation"].as_string() == "relu"
    assert "scale" not in node.attributes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda function: setattr(function.node[-1], "op_type", "Foo"), "Foo is not an operator of ONNX"),
        (lambda function: function.node[-1].input.__setitem__(0, "nowhere"), "'nowhere', which is no input"),
        (lambda function: function.output.__setitem__(0, "nowhere"), "nowhere"),
    ],
)
def test_broken_functions_are_refused(exported, change, message):
    model = onnx.load(exported[0])
    change(model.functions[0])
    with pytest.raises(MoecError, match=message):
        import_model(model, None, None, None)


@pytest.mark.parametrize("form", ["file", "folder"])
def test_nothing_foreign_is_replaced(model_path, tmp_path, form):
    output = tmp_path / "out.onnx" if form == "file" else tmp_path / "out"
    for _ in range(2):
        moec.export(model_path, output, form="onnx")
    changed = output if form == "file" else output / "model.onnx"
    changed.write_bytes(changed.read_bytes() + b"\0")
    with pytest.raises(MoecError, match="moec"):
        moec.export(model_path, output, form="onnx")


def test_operators_that_are_not_of_onnx_are_refused_by_name(tmp_path):
    text = """<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]>
    graph (float[T,8] x) => (float[T,8] y) { y = com.microsoft.QuickGelu <beta = 2.0> (x) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "in.onnx")
    with pytest.raises(MoecError, match=r"com\.microsoft\.QuickGelu is no operator of ONNX.*--for onnxruntime"):
        moec.export(tmp_path / "in.onnx", tmp_path / "out.onnx", form="onnx")
    assert not (tmp_path / "out.onnx").exists()


def test_experts_keep_formats_of_their_own(model_path, tmp_path):
    output = tmp_path / "out.onnx"
    passes = "O2,quantize-experts{format=int8,experts=0-1},quantize-experts{format=int4,group=16,experts=3}"
    moec.export(model_path, output, form="onnx", passes=passes)
    (block,), _ = find_blocks(output)
    assert block["formats"]["up"] == ["int8", "int8", "float32", "int4"]
    np.testing.assert_array_equal(results(output, CHECKED, rows(5)), results(model_path, passes, rows(5)))


def test_an_arithmetic_that_onnx_lacks_is_refused_by_name(model_path, tmp_path):
    with pytest.raises(MoecError, match=r"moec\.MoE cannot be written in ONNX"):
        moec.export(model_path, tmp_path / "out.onnx", form="onnx", passes="O2,round-to-tf32")
    assert list(tmp_path.iterdir()) == []
