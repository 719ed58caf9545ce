from __future__ import annotations

import mmap
import os

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import moec
from moec.errors import MoecError, UnsupportedError
from moec.frontend.onnx import import_model
from moec.ir import interpreter
from moec.ir.opsets import NEWEST, OPSET

X = np.arange(6, dtype=np.float32).reshape(2, 3)


def model_of(nodes, *, opset=17, initializers=(), functions=(), inputs=(("x", [None, 3]),), ir_version=10, imports=()):
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        list(initializers),
    )
    opsets = [helper.make_opsetid("", opset), *imports]
    return helper.make_model(graph, opset_imports=opsets, functions=list(functions), ir_version=ir_version)


def relu(**options):
    return model_of([helper.make_node("Relu", ["x"], ["y"], name="the_node")], **options)


def external(folder, *, location="weights.bin", offset="0", length="24", size=24, shape=(2, 3), width=3):
    """A model that adds an external tensor of 24 bytes; its data file is written when ``location`` is a plain name."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=value)
    if size is not None:
        (folder / "weights.bin").write_bytes(X.tobytes()[:size])
    path = folder / "model.onnx"
    add = helper.make_node("Add", ["x", "w"], ["y"])
    path.write_bytes(model_of([add], initializers=[tensor], inputs=[("x", [None, width])]).SerializeToString())
    return path


def refuse(source, message, kind=MoecError):
    with pytest.raises(kind, match=message) as caught:
        import_model(source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("opset", [11, 12, 13, 17, 20, 23, OPSET, NEWEST])
def test_every_opset_becomes_the_working_opset(opset):
    node = helper.make_node("Softmax", ["x"], ["y"], axis=1)
    model = import_model(model_of([node], opset=opset))
    assert model.graph.opset_imports[""] == OPSET
    found = interpreter.run(model, {"x": X})["y"]
    np.testing.assert_allclose(found, np.exp(X) / np.exp(X).sum(1, keepdims=True), rtol=1e-5)


def test_an_opset_with_other_meaning_is_really_converted():
    """Before opset 13 Squeeze took its axes as an attribute, and Softmax flattened the trailing axes."""
    nodes = [helper.make_node("Unsqueeze", ["x"], ["u"], axes=[0]), helper.make_node("Softmax", ["u"], ["y"], axis=1)]
    found = interpreter.run(import_model(model_of(nodes, opset=11)), {"x": X})["y"]
    np.testing.assert_allclose(found, (np.exp(X) / np.exp(X).sum())[None], rtol=1e-5)


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
    assert [one.op_type for one in model.graph] == ["Mul"]
    assert not model.functions and "local" not in model.graph.opset_imports
    np.testing.assert_array_equal(interpreter.run(model, {"x": X})["y"], 2 * X)


def test_an_initializer_that_is_an_input_too_is_a_constant():
    weight = numpy_helper.from_array(X[0], "w")
    proto = model_of(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        opset=11, initializers=[weight], inputs=(("x", [None, 3]), ("w", [3])), ir_version=3,
    )  # fmt: skip
    assert [value.name for value in import_model(proto).graph.inputs] == ["x"]


@pytest.mark.parametrize(("given", "found"), [(3, 10), (10, 10), (11, 11)])
def test_the_version_of_the_ir_never_goes_down(given, found):
    assert import_model(model_of([helper.make_node("Relu", ["x"], ["y"])], ir_version=given)).ir_version == found


def map_behind(tensor):
    """The memory map that a tensor's array is a part of, None if it is not a part of one."""
    array = tensor.numpy()
    while array is not None and not isinstance(array, mmap.mmap):
        array = array.obj if isinstance(array, memoryview) else getattr(array, "base", None)
    return array


def test_weights_stay_in_their_file(tmp_path):
    rows = 1 << 30  # 4 GiB, as a file without blocks: reading it would be noticed
    path = external(tmp_path, length=str(rows * 4), size=None, shape=(rows,), width=rows)
    with open(tmp_path / "weights.bin", "wb") as file:
        file.truncate(rows * 4)
    weight = import_model(path).graph.initializers["w"].const_value
    assert map_behind(weight) is not None


def test_weights_of_one_file_share_one_map(tmp_path):
    tensors = []
    for name, offset in (("v", "0"), ("w", "12")):
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[3], data_location=TensorProto.EXTERNAL)
        for key, entry in (("location", "weights.bin"), ("offset", offset), ("length", "12")):
            tensor.external_data.add(key=key, value=entry)
        tensors.append(tensor)
    X.tofile(tmp_path / "weights.bin")
    nodes = [helper.make_node("Add", ["x", "v"], ["a"]), helper.make_node("Add", ["a", "w"], ["y"])]
    model = model_of(nodes, initializers=tensors, opset=OPSET)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    weights = import_model(tmp_path / "model.onnx").graph.initializers
    v, w = (weights[name].const_value for name in ("v", "w"))
    np.testing.assert_array_equal(np.stack([v.numpy(), w.numpy()]), X)
    assert map_behind(v) is map_behind(w) is not None


def test_a_small_external_weight_has_its_values(tmp_path):
    model = import_model(external(tmp_path))
    np.testing.assert_array_equal(interpreter.run(model, {"x": X})["y"], 2 * X)


def test_onnxruntimes_layer_normalisation_in_the_onnx_domain():
    scale = numpy_helper.from_array(np.ones(3, np.float32), "scale")
    node = helper.make_node("SimplifiedLayerNormalization", ["x", "scale"], ["y"], epsilon=1e-5)
    (found,) = import_model(model_of([node], initializers=[scale])).graph
    assert (found.domain, found.op_type, len(found.outputs)) == ("", "RMSNormalization", 1)


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
    """Exporters write both branches of a question about sizes that they know."""
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
        found = interpreter.run(model, {"c": np.array(flag), "x": X[:1]})["y"]
        np.testing.assert_array_equal(found, X[0] * factor)


def test_what_nothing_knows_is_refused_in_bodies_too():
    text = """<ir_version: 8, opset_import: ["": 17]> g (bool c, float[3] x) => (float[3] y) {
        y = If (c) <then_branch = a () => (float[3] p) { p = Unheard (x) },
                    else_branch = b () => (float[3] q) { q = Neg (x) }> }"""
    refuse(onnx.parser.parse_model(text), "Unheard is not an operator of ONNX", UnsupportedError)


def test_files_that_are_no_models(tmp_path):
    good = external(tmp_path).read_bytes()
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
    "options, message",
    [
        ({"size": None}, "is missing in"),
        ({"location": "../weights.bin"}, "outside the model's folder"),
        ({"location": "sub/../../weights.bin"}, "outside the model's folder"),
        ({"location": "/etc/passwd"}, "outside the model's folder"),
        ({"location": ""}, "outside the model's folder"),
        ({"size": 20}, "lies at bytes 0 to 24 of 'weights.bin', but that file has 20"),
        ({"offset": "4"}, "lies at bytes 4 to 28"),
        ({"offset": "-4"}, "the offset of its external data is '-4'"),
        ({"length": "many"}, "the length of its external data is 'many'"),
        ({"length": "20"}, "has 20 bytes in 'weights.bin', expected 24"),
        ({"shape": (2, 4)}, r"expected 32 for its shape \[2, 4\]"),
        ({"shape": (2, -3)}, "has the negative size -3"),
    ],
)
def test_external_data_is_checked_before_it_is_read(tmp_path, options, message):
    refuse(external(tmp_path, **options), f"tensor 'w'.*{message}")


def test_links_do_not_lead_out_of_the_folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    path = external(folder)
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(24))
    (folder / "weights.bin").unlink()
    (folder / "weights.bin").symlink_to(secret)
    refuse(path, "tensor 'w'.*outside the model's folder")
    (folder / "weights.bin").unlink()
    os.link(secret, folder / "weights.bin")
    refuse(path, "tensor 'w'.*hard link")


def test_a_model_in_memory_has_no_folder(tmp_path):
    proto = onnx.load(external(tmp_path), load_external_data=False)
    refuse(proto, "a model given in memory has no folder")


def test_tensors_whose_data_and_shape_disagree():
    weight = numpy_helper.from_array(X, "w")
    weight.dims[0] = 3
    nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
    refuse(model_of(nodes, initializers=[weight]), "tensor 'w' holds 24 bytes, expected 36")
    typed = helper.make_tensor("w", TensorProto.FLOAT, [2], [1, 2])
    typed.dims[0] = 4
    refuse(model_of(nodes, initializers=[typed]), "tensor 'w' holds 2 values, expected 4")
    typed.data_type = 999
    refuse(model_of(nodes, initializers=[typed]), "element type 999")


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
            "node 'n': moec.Rout .* is unknown, expected one of Route",
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


def test_names_that_are_not_text(tmp_path):
    data = relu().SerializeToString()
    assert data.count(b"Relu") == 1
    (tmp_path / "model.onnx").write_bytes(data.replace(b"Relu", b"Re\xffu"))
    refuse(tmp_path / "model.onnx", "node 0 has a name that is not text")


def test_a_graph_whose_name_is_not_text(tmp_path):
    data = relu().SerializeToString()
    assert data.count(b"graph") == 1
    (tmp_path / "model.onnx").write_bytes(data.replace(b"graph", b"gra\xffh"))
    refuse(tmp_path / "model.onnx", "model.onnx: the model is inconsistent: .*utf-8.*0xff")


def test_an_undefined_input_is_one_error_and_no_warning(caplog):
    refuse(model_of([helper.make_node("Add", ["x", "nothing"], ["y"], name="n")]), "nothing")
    assert not caplog.records


@pytest.mark.parametrize(
    "node, message",
    [
        (helper.make_node("Add", ["x"], ["y"], "n"), r"node 'n': Add \(opset 17\) has 1 inputs, expected 2 to 2"),
        (helper.make_node("Relu", ["x"], ["y", "z"], "n"), "has 2 outputs, expected 1 to 1"),
        (
            helper.make_node("ScatterND", ["x", "x", "x"], ["y"], "n", reduction="sum"),
            r"ScatterND \(opset 17\) has reduction='sum', expected none, add, mul, max, min",
        ),
        (
            helper.make_node("Softmax", ["x"], ["y"], "n", axis=1.5),
            r"Softmax \(opset 17\) has attribute 'axis' of type FLOAT, expected INT",
        ),
    ],
)
def test_nodes_that_do_not_fit_their_operator(node, message):
    refuse(model_of([node]), message)


@pytest.mark.parametrize(
    ("outputs", "values", "message"),
    [
        (["c"], {"valeu": 1.0}, "has the attribute 'valeu', expected .*value_int, sparse_value, value"),
        (["c"], {}, "has 0 values, expected 1"),
        (["c"], {"value_float": 1.0, "value_int": 1}, "has 2 values, expected 1"),
        (["c"], {"value_float": 1}, "has attribute 'value_float' of type INT, expected FLOAT"),
        ([], {"value_float": 1.0}, "has 0 outputs, expected 1 to 1"),
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
            r"Relu \(opset 17\) has the attribute 'alhpa', expected none",
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
    refuse(proto, "input 'x'.*has the shape .*, expected sizes from 0 to 2147483647")


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
