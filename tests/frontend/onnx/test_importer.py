from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import moec
from moec.common.errors import UnsupportedError
from moec.frontend.onnx.importer import import_model
from moec.ir import interpreter
from moec.ir.opsets import NEWEST, OPSET

from ..small_models import X, model_of, refuse, relu


@pytest.mark.parametrize("opset", [11, 12, 13, 17, 20, 23, OPSET, NEWEST])
def test_every_opset_becomes_the_working_opset(opset):
    node = helper.make_node("Softmax", ["x"], ["y"], axis=1)
    model = import_model(model_of([node], opset=opset))
    assert model.graph.opset_imports[""] == OPSET
    actual = interpreter.run(model, {"x": X})["y"]
    np.testing.assert_allclose(actual, np.exp(X) / np.exp(X).sum(1, keepdims=True), rtol=1e-5)


def test_an_opset_with_other_meaning_is_really_converted():
    """Before opset 13 Squeeze took its axes as an attribute, and Softmax flattened the trailing axes."""
    nodes = [helper.make_node("Unsqueeze", ["x"], ["u"], axes=[0]), helper.make_node("Softmax", ["u"], ["y"], axis=1)]
    actual = interpreter.run(import_model(model_of(nodes, opset=11)), {"x": X})["y"]
    np.testing.assert_allclose(actual, (np.exp(X) / np.exp(X).sum())[None], rtol=1e-5)


def test_path_message_and_ir_are_accepted_and_not_changed(tmp_path):
    proto = relu()
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    graph = ir.from_proto(proto)
    for source in (path, str(path), proto, graph):
        assert [node.op_type for node in import_model(source).graph] == ["Relu"]
    assert graph.graph.opset_imports[""] == 17 and proto == relu()


def test_functions_are_inlined_and_constants_become_initializers():
    body = [
        helper.make_node("Constant", [], ["two"], value_float=2.0),
        helper.make_node("Mul", ["a", "two"], ["b"]),
    ]
    function = helper.make_function("local", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    node = helper.make_node("Twice", ["x"], ["y"], domain="local")
    model = import_model(model_of([node], functions=[function], imports=[helper.make_opsetid("local", 1)]))
    assert [node.op_type for node in model.graph] == ["Mul"]
    assert not model.functions and "local" not in model.graph.opset_imports
    np.testing.assert_array_equal(interpreter.run(model, {"x": X})["y"], 2 * X)


def test_an_initializer_that_is_an_input_too_is_a_constant():
    weight = numpy_helper.from_array(X[0], "w")
    proto = model_of(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        opset=11, initializers=[weight], inputs=(("x", [None, 3]), ("w", [3])), ir_version=3,
    )  # fmt: skip
    assert [value.name for value in import_model(proto).graph.inputs] == ["x"]


@pytest.mark.parametrize(("declared", "expected"), [(3, 10), (10, 10), (11, 11)])
def test_the_version_of_the_ir_never_goes_down(declared, expected):
    assert import_model(model_of([helper.make_node("Relu", ["x"], ["y"])], ir_version=declared)).ir_version == expected


def test_onnxruntimes_layer_normalisation_in_the_onnx_domain():
    scale = numpy_helper.from_array(np.ones(3, np.float32), "scale")
    node = helper.make_node("SimplifiedLayerNormalization", ["x", "scale"], ["y"], epsilon=1e-5)
    (actual,) = import_model(model_of([node], initializers=[scale])).graph
    assert (actual.domain, actual.op_type, len(actual.outputs)) == ("", "RMSNormalization", 1)


def test_its_second_output_has_no_equal():
    scale = numpy_helper.from_array(np.ones(3, np.float32), "scale")
    node = helper.make_node("SimplifiedLayerNormalization", ["x", "scale"], ["normalized", "y"], epsilon=1e-5)
    with pytest.raises(UnsupportedError, match="SimplifiedLayerNormalization is not an operator of ONNX"):
        import_model(model_of([node], initializers=[scale]))


@pytest.mark.parametrize("constant", [True, False])
def test_a_branch_is_resolved_when_its_condition_is_constant(constant):
    def branch(op_type):
        output = helper.make_tensor_value_info(f"{op_type}_out", TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node(op_type, ["x"], [f"{op_type}_out"])], op_type, [], [output])

    condition = numpy_helper.from_array(np.array(True), "condition")
    nodes = [
        helper.make_node("If", ["condition"], ["y"], "fork", then_branch=branch("Relu"), else_branch=branch("Neg"))
    ]
    if constant:
        model = import_model(model_of(nodes, initializers=[condition]))
        np.testing.assert_array_equal(interpreter.run(model, {"x": -X})["y"], np.maximum(-X, 0))
        return
    proto = model_of(nodes)
    proto.graph.input.append(helper.make_tensor_value_info("condition", TensorProto.BOOL, []))
    assert [node.op_type for node in import_model(proto).graph] == ["If"]


@pytest.mark.parametrize("steps", ["p = Unheard (x)", "p = Squeeze <axes = [0]> (x)"])
def test_what_a_branch_holds_that_is_never_taken_is_not_refused(steps):
    """Exporters write both branches of a test of sizes that they know."""
    text = f"""<ir_version: 8, opset_import: ["": 11]> g (float[3] x) => (float[3] y) {{
        sizes = Shape (x)  one = Constant <value = int64[1] {{1}}> ()  same = Equal (sizes, one)
        c = Squeeze <axes = [0]> (same)
        y = If (c) <then_branch = a () => (p) {{ {steps} }}, else_branch = b () => (q) {{ q = Neg (x) }}> }}"""
    assert [node.op_type for node in import_model(onnx.parser.parse_model(text)).graph] == ["Neg"]


def test_bodies_are_at_the_working_opset_and_hold_no_constants():
    text = """<ir_version: 8, opset_import: ["": 11]> g (bool c, float[1,3] x) => (float[3] y) {
        y = If (c) <then_branch = a () => (float[3] p) {
                w = Constant <value = float[1] {2.0}> ()  m = Mul (x, w)  p = Squeeze <axes = [0]> (m) },
            else_branch = b () => (float[3] q) {
                v = Constant <value = float[1] {3.0}> ()  n = Mul (x, v)  q = Squeeze <axes = [0]> (n) }> }"""
    model = import_model(onnx.parser.parse_model(text))
    assert [len(node.inputs) for node in model.graph.all_nodes() if node.op_type == "Squeeze"] == [2, 2]
    assert len(model.graph.initializers) == 4
    for flag, factor in ((True, 2), (False, 3)):
        actual = interpreter.run(model, {"c": np.array(flag), "x": X[:1]})["y"]
        np.testing.assert_array_equal(actual, X[0] * factor)


def test_what_nothing_knows_is_refused_in_bodies_too():
    text = """<ir_version: 8, opset_import: ["": 17]> g (bool c, float[3] x) => (float[3] y) {
        y = If (c) <then_branch = a () => (float[3] p) { p = Unheard (x) },
                    else_branch = b () => (float[3] q) { q = Neg (x) }> }"""
    refuse(onnx.parser.parse_model(text), "Unheard is not an operator of ONNX", UnsupportedError)


def test_files_that_are_no_models(tmp_path):
    good = relu().SerializeToString()
    refuse(tmp_path / "absent.onnx", "no such file")
    refuse(tmp_path, "is a directory")
    for name, content, message in (
        ("empty", b"", "the file is empty"),
        ("truncated", good[: len(good) // 2], "truncated"),
        ("text", b"this is not a model\n" * 9, "another kind of file"),
        ("zip", b"PK\x03\x04" + bytes(64), "another kind of file"),
        ("zeros", bytes(100), "another kind of file"),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        refuse(path, message)
    refuse(42, "cannot import a int")


@pytest.mark.parametrize(
    "proto, message",
    [
        (relu(opset=10), "opset 10 is too old, and Relu has changed since; expected 11 to"),
        (relu(opset=NEWEST + 1), "is newer than moec knows"),
        (relu(opset=2**40), "is newer than moec knows"),
        (model_of([helper.make_node("Rleu", ["x"], ["y"], "n")]), "node 'n': Rleu is not an operator of ONNX opset 17"),
        (
            model_of([helper.make_node("F", ["x"], ["y"], "n", domain="own")], imports=[helper.make_opsetid("own", 2)]),
            r"node 'n': own.F \(opset 2\) is of an unknown domain",
        ),
        (
            model_of([helper.make_node("Adam", ["x"], ["y"], "n", domain="ai.onnx.preview.training")]),
            "node 'n': ai.onnx.preview.training.Adam .* is for training",
        ),
        (
            model_of([helper.make_node("SequenceConstruct", ["x"], ["y"], "n")]),
            "node 'n': SequenceConstruct .* works on sequences",
        ),
        (
            model_of([helper.make_node("Rout", ["x"], ["y"], "n", domain="moec")]),
            "node 'n': moec.Rout .* is unknown; expected one of Route",
        ),
    ],
)
def test_what_is_not_supported_names_node_operator_and_opset(proto, message):
    refuse(proto, message, UnsupportedError)


def test_strings_and_sequences_as_inputs():
    proto = relu()
    proto.graph.input.append(helper.make_tensor_value_info("names", TensorProto.STRING, [None]))
    refuse(proto, "input 'names' holds strings", UnsupportedError)
    proto = relu()
    proto.graph.input.append(helper.make_tensor_sequence_value_info("many", TensorProto.FLOAT, None))
    refuse(proto, "input 'many' is a SequenceType", UnsupportedError)


def test_an_inconsistent_graph():
    refuse(model_of([helper.make_node("Relu", ["absent"], ["y"], "n")]), "absent")


def test_an_output_that_nothing_computes():
    refuse(model_of([]), "model: output 'y' is no input, constant or result")
    refuse(model_of([helper.make_node("Relu", ["x"], ["z"])]), "model: output 'y' is no input, constant or result")


FUNCTION = """<ir_version: 10, opset_import: ["" : 21, "own" : 1], domain: "owner">
main (float[SIZE,4] x) => (float[SIZE,4] y) <float[1] weight = {1}> { y = own.Function <factor = "text"> (x) }
<opset_import: ["" : 21], domain: "own">
Function <factor> (inner) => (outer) { outer = Relu (inner) }"""


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("Relu", "function 0: node 0"),
        ("Function", "node 0"),
        ("inner", "function 0"),
        ("SIZE", "the shape of a value of the graph"),
        ("weight", "a tensor of the graph"),
        ("main", "the graph"),
        ("owner", "the model"),
        ("text", "an attribute of node 0"),
    ],
)
def test_texts_that_are_not_utf_8(tmp_path, text, place):
    data = onnx.parser.parse_model(FUNCTION).SerializeToString()
    import_model(onnx.load_from_string(data))
    assert text.encode() in data
    (tmp_path / "model.onnx").write_bytes(data.replace(text.encode(), text[:-1].encode() + b"\xff"))
    refuse(tmp_path / "model.onnx", f"{place} has a name or a text that is not UTF-8")


def test_an_undefined_input_is_one_error_and_no_warning(caplog):
    refuse(model_of([helper.make_node("Add", ["x", "nothing"], ["y"], name="n")]), "nothing")
    assert not caplog.records


@pytest.mark.parametrize(
    "node, message",
    [
        (helper.make_node("Add", ["x"], ["y"], "n"), r"node 'n': Add \(opset 17\) has 1 inputs; expected 2 to 2"),
        (helper.make_node("Relu", ["x"], ["y", "z"], "n"), "has 2 outputs; expected 1 to 1"),
        (
            helper.make_node("ScatterND", ["x", "x", "x"], ["y"], "n", reduction="sum"),
            r"ScatterND \(opset 17\) has reduction='sum'; expected none, add, mul, max, min",
        ),
        (
            helper.make_node("Softmax", ["x"], ["y"], "n", axis=1.5),
            r"Softmax \(opset 17\) has attribute 'axis' of type FLOAT; expected INT",
        ),
    ],
)
def test_nodes_that_do_not_fit_their_operator(node, message):
    refuse(model_of([node]), message)


@pytest.mark.parametrize(
    ("outputs", "values", "message"),
    [
        (["c"], {"valeu": 1.0}, "has the attribute 'valeu'; expected .*value_int, sparse_value, value"),
        (["c"], {}, "has 0 values; expected 1"),
        (["c"], {"value_float": 1.0, "value_int": 1}, "has 2 values; expected 1"),
        (["c"], {"value_float": 1}, "has attribute 'value_float' of type INT; expected FLOAT"),
        ([], {"value_float": 1.0}, "has 0 outputs; expected 1 to 1"),
        ([""], {"value_float": 1.0}, "has an output without a name"),
    ],
)
def test_a_constant_has_one_value_of_its_type(outputs, values, message):
    nodes = [helper.make_node("Constant", [], outputs, "n", **values), helper.make_node("Add", ["x", "c"], ["y"])]
    refuse(model_of(nodes), f"node 'n': Constant {message}")


def referring(name):
    node = helper.make_node("LeakyRelu", ["x"], ["y"], "n")
    node.attribute.append(onnx.AttributeProto(name=name, ref_attr_name="slope", type=onnx.AttributeProto.FLOAT))
    return node


@pytest.mark.parametrize(
    "node, message",
    [
        (referring("alpha"), "attribute 'alpha' of LeakyRelu refers to 'slope' of a function, which is not there"),
        (
            helper.make_node("Relu", ["x"], ["y"], "n", alhpa=1.0),
            r"Relu \(opset 17\) has the attribute 'alhpa'; expected none",
        ),
        (
            helper.make_node("DequantizeLinear", ["x", "x"], ["y"], "n", width=5),
            "has the attribute 'width', which moec's own passes write .*; compile the model as it was before",
        ),
        (helper.make_node("Concat", ["x", "x"], ["y"], "n"), r"Concat \(opset 17\) lacks its attribute 'axis'"),
        (helper.make_node("Gemm", ["x", ""], ["y"], "n"), r"Gemm \(opset 17\) lacks its input 'B'"),
    ],
)
def test_what_an_operator_does_not_know_or_cannot_do_without(node, message):
    refuse(model_of([node]), f"node 'n'.*{message}")


def test_an_optional_input_may_be_left_out():
    node = helper.make_node("Clip", ["x", "", "high"], ["y"])
    high = numpy_helper.from_array(np.array(2, np.float32), "high")
    model = import_model(model_of([node], initializers=[high]))
    np.testing.assert_array_equal(interpreter.run(model, {"x": X})["y"], np.minimum(X, 2))


@pytest.mark.parametrize("shape", [[-3, 3], [None, 2**31], [2**62, 2**62]])
def test_impossible_sizes_of_inputs(shape):
    proto = relu(inputs=[("x", [None, 3])])
    proto.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, shape))
    refuse(proto, "input 'x'.*has the shape .*; expected sizes from 0 to 2147483647")


def test_a_value_that_no_memory_holds():
    constants = [numpy_helper.from_array(np.array([1 << 20] * 3, np.int64), "shape")]
    expand = helper.make_node("ConstantOfShape", ["shape"], ["c"], "n")
    nodes = [
        expand,
        helper.make_node("ReduceMax", ["c"], ["m"], keepdims=0),
        helper.make_node("Add", ["x", "m"], ["y"]),
    ]
    with pytest.raises(UnsupportedError, match=r"node 'n' \(ConstantOfShape\): its result has the shape .* at most"):
        moec.compile(model_of(nodes, initializers=constants))
