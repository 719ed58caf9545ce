"""Printing models and reading them back."""

import re

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from moec.common.errors import MoecError, UnsupportedError
from moec.ir.dialect import ExpertsSpec, RouteSpec, make_node
from moec.ir.interpreter import run
from moec.ir.text import parse_model, print_model
from moec.ir.weight_hashes import content_hash


def read(text: str) -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model(text))


def moe_model() -> tuple[ir.Model, dict[str, np.ndarray]]:
    """A small layer with router, experts and a reshape, made in code."""
    generator = np.random.default_rng(0)
    arrays = {
        "router": generator.normal(size=(8, 4)),
        "up": generator.normal(size=(4, 12, 8)),
        "down": generator.normal(size=(4, 8, 6)),
    }
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    weights = {name: ir.val(name, const_value=ir.tensor(array, name=name)) for name, array in arrays.items()}
    flat = ir.val("flat", const_value=ir.tensor(np.array([-1, 8]), name="flat"))
    x = ir.val("x", ir.DataType.FLOAT, ("batch", "seq", 8))
    rows = ir.node("Reshape", [x, flat], name="flatten")
    logits = ir.node("MatMul", [rows.outputs[0], weights["router"]], name="router")
    routed = make_node("Route", {"logits": logits.outputs[0]}, RouteSpec(k=2, normalize=True, scale=2.5), name="route")
    inputs = {"x": rows.outputs[0], "weights": routed.outputs[0], "experts": routed.outputs[1]}
    inputs |= {"up": weights["up"], "down": weights["down"]}
    node = make_node("Experts", inputs, ExpertsSpec(alpha=1.702, limit=7.0), name="experts")
    names = ["rows", "logits", "weights", "experts", "y"]
    values = [value for producer in (rows, logits, routed, node) for value in producer.outputs]
    for name, value in zip(names, values, strict=True):
        value.name = name
    values[1].dtype, values[1].shape = ir.DataType.FLOAT, ir.Shape(("T", 4))
    node.outputs[0].dtype, node.outputs[0].shape = ir.DataType.FLOAT, ir.Shape(("T", 8))
    graph = ir.Graph(
        [x],
        node.outputs,
        nodes=[rows, logits, routed, node],
        initializers=[*weights.values(), flat],
        opset_imports={"moec": 1, "": 24},
        name="layer",
    )
    return ir.Model(graph, ir_version=10), arrays


GOLDEN = """\
<
   ir_version: 10,
   opset_import: ["" : 24, "moec" : 1]
>
layer (float[batch,seq,8] x) => (float[T,8] y)
<
   float[8,4] router = ["location": "sha256:HASH"],
   float[4,12,8] up = ["location": "sha256:HASH"],
   float[4,8,6] down = ["location": "sha256:HASH"],
   int64[2] flat = {-1, 8},
   float[T,4] logits
>
{
   [flatten] rows = Reshape (x, flat)
   [router] logits = MatMul (rows, router)
   [route] weights, experts = moec.Route <k = 2, normalize = 1, scale = 2.5> (logits)
   [experts] y = moec.Experts <alpha = 1.702, limit = 7.0> (rows, weights, experts, up, down)
}
"""


def test_the_text_of_a_layer() -> None:
    text = print_model(moe_model()[0])
    assert re.sub(r"sha256:[0-9a-f]{16}", "sha256:HASH", text) == GOLDEN


def test_types_and_node_names_can_be_left_out() -> None:
    text = print_model(moe_model()[0], types=False, node_names=False)
    assert "float[T,4] logits" not in text
    assert "   logits = MatMul (rows, router)\n" in text


def test_hashes_are_those_of_the_bytes() -> None:
    model, arrays = moe_model()
    hashes = re.findall(r"sha256:([0-9a-f]{16})", print_model(model))
    assert hashes == [content_hash(ir.tensor(array)) for array in arrays.values()]


def same_attribute(a: ir.Attr, b: ir.Attr) -> bool:
    if a.type != b.type or a.ref_attr_name != b.ref_attr_name:
        return False
    if a.type == ir.AttributeType.GRAPH:
        assert_same_graph(a.as_graph(), b.as_graph())
        return True
    if a.type == ir.AttributeType.TENSOR:
        return same_tensor(a.as_tensor(), b.as_tensor())
    if a.type == ir.AttributeType.FLOAT:  # ONNX stores float32, also of an attribute made in Python
        return np.float32(a.value) == np.float32(b.value)
    return a.value == b.value


def same_tensor(a: ir.TensorProtocol, b: ir.TensorProtocol) -> bool:
    if a.dtype == ir.DataType.STRING:
        return np.array_equal(a.numpy(), b.numpy())
    return a.dtype == b.dtype and tuple(a.shape) == tuple(b.shape) and content_hash(a) == content_hash(b)


def described(values) -> list[tuple]:
    return [None if v is None else (v.name, v.type, v.shape) for v in values]


def assert_same_graph(a: ir.Graph, b: ir.Graph) -> None:
    assert a.name == b.name
    assert described(a.inputs) == described(b.inputs) and described(a.outputs) == described(b.outputs)
    assert list(a.initializers) == list(b.initializers)
    for name, value in a.initializers.items():
        assert same_tensor(value.const_value, b.initializers[name].const_value)
    assert len(a) == len(b)
    for first, other in zip(a, b, strict=True):
        assert (first.domain, first.op_type, first.overload, first.name) == (
            other.domain,
            other.op_type,
            other.overload,
            other.name,
        )
        assert described(first.inputs) == described(other.inputs) and described(first.outputs) == described(
            other.outputs
        )
        assert set(first.attributes) == set(other.attributes)
        assert all(same_attribute(first.attributes[key], other.attributes[key]) for key in first.attributes)


def assert_round_trip(model: ir.Model) -> None:
    text = print_model(model)
    again = parse_model(text)
    assert (again.ir_version, dict(again.opset_imports)) == (model.ir_version, dict(model.opset_imports))
    assert_same_graph(model.graph, again.graph)
    assert print_model(again) == text


def test_a_layer_made_in_code_survives() -> None:
    assert_round_trip(moe_model()[0])


def test_attributes_of_every_kind_survive() -> None:
    attributes = """a = 1.0, b = "q\\"\\\\s", c = [1, -2], d = [1.5, 2.0], e = ["x", ""], f = 1e-05, g = 1e+20, h = -3,
        i: float = inf, j: floats = [1.0, -inf], k: ints = [], l: floats = [], m: strings = [],
        n: tensor = int64[2] {1, -2}, o: tensor = float {0.1}, p: tensor = float[3] {1, 2, 3}, q = "inf" """
    header = '<ir_version: 10, opset_import: ["" : 24, "x.y" : 3]>'
    assert_round_trip(read(f"{header}\ng (float[2] v) => (w) {{ w = x.y.Op:o <{attributes}> (v) }}"))


def test_constants_of_every_kind_survive() -> None:
    constants = """float16 a = {15360}, bfloat16[1] b = {16256}, double c = {0.1}, float d = {-inf}, float e = {nan},
        bool[2] f = {1, 0}, uint64[1] g = {18446744073709551615}, string[2] h = {"a", "b\\"c"}, int64[0] i = {},
        float[2] j = {1, 2}, int64[9] k = {1,2,3,4,5,6,7,8,9}, int64[1,1] l = {3}, int8[1] m = {-1}, float[0] n = {}"""
    model = read(f'<ir_version: 10, opset_import: ["" : 24]>\ng (float[2] x) => (y)\n<{constants}>\n{{ y = Relu (x) }}')
    assert_round_trip(model)
    again = parse_model(print_model(model))
    for name in "abcdfgim":
        np.testing.assert_array_equal(
            again.graph.initializers[name].const_value.numpy(), model.graph.initializers[name].const_value.numpy()
        )
    for name in "jkl":
        with pytest.raises(MoecError):
            again.graph.initializers[name].const_value.numpy()


def test_names_and_types_of_every_kind_survive() -> None:
    signature = '"a b" (float["x+y",?,seq] "float", int64 "/m/x.0", float16[] q, seq(float[N]) "seq", z) => (float[] y)'
    body = '"", "a\\"b" = Split <num_outputs = 2> (z)\n ["node one"] y = Clip ("float", "", q)'
    assert_round_trip(read(f'<ir_version: 10, opset_import: ["" : 24]>\n{signature}\n<float[T] "a\\"b">\n{{ {body} }}'))


def test_nested_graphs_survive() -> None:
    body = """y = If <then_branch = a () => (float[T] p) <float[2] w = {1, 2}, int64 k = {3}> { p = Add (x, w) },
        else_branch = b () => (q) { q = Neg (x) }> (c)"""
    assert_round_trip(read(f'<ir_version: 10, opset_import: ["" : 24]>\ng (float[T] x, bool c) => (y) {{ {body} }}'))


def test_long_lists_of_types_are_wrapped() -> None:
    body = "\n".join(f"a_rather_long_name_{i} = Relu (x)" for i in range(20))
    model = read(f'<ir_version: 10, opset_import: ["" : 24]>\ng (float[T] x) => (x) {{ {body} }}')
    for node in model.graph:
        node.outputs[0].dtype, node.outputs[0].shape = ir.DataType.FLOAT, ir.Shape(("T", None))
    assert max(len(line) for line in print_model(model).splitlines()) <= 120
    assert_round_trip(model)


def test_a_hashed_weight_says_so_when_its_numbers_are_wanted() -> None:
    model = parse_model(print_model(moe_model()[0]))
    weight = model.graph.initializers["up"].const_value
    assert (weight.dtype, tuple(weight.shape), weight.size) == (ir.DataType.FLOAT, (4, 12, 8), 384)
    for read_numbers in (weight.numpy, weight.tobytes, lambda: np.asarray(weight)):
        with pytest.raises(MoecError, match=r"weight up: the text holds its hash .* weights="):
            read_numbers()


def test_weights_given_by_name_make_the_model_run() -> None:
    model, arrays = moe_model()
    again = parse_model(print_model(model), weights=arrays)
    x = np.random.default_rng(1).normal(size=(2, 3, 8)).astype(np.float32)
    np.testing.assert_array_equal(run(again, {"x": x})["y"], run(model, {"x": x})["y"])


def test_the_weight_of_a_constant_node_is_given_by_the_name_of_its_value() -> None:
    model = read(
        '<ir_version: 10, opset_import: ["" : 24]>\ng () => (c) { c = Constant <value: tensor = float[2] {1, 2}> () }'
    )
    again = parse_model(print_model(model), weights={"c": np.array([1, 2], np.float32)})
    np.testing.assert_array_equal(run(again, {})["c"], [1, 2])


@pytest.mark.parametrize(
    "wrong", [np.zeros((8, 4), np.float32), np.zeros((4, 8), np.float32), np.zeros((8, 4), ml_dtypes.bfloat16)]
)
def test_another_weight_is_refused(wrong: np.ndarray) -> None:
    with pytest.raises(MoecError, match=r"weight router: the given array is .* the text has FLOAT\[8, 4\]"):
        parse_model(print_model(moe_model()[0]), weights={"router": wrong})


def test_text_cannot_refer_to_files() -> None:
    text = '<ir_version: 10, opset_import: ["" : 24]>\ng () => (w)\n<float[2] w = ["location": "../secret"]>\n{ }'
    with pytest.raises(MoecError, match=r"weight w is said to be at '../secret'"):
        parse_model(text)


@pytest.mark.parametrize("text", ["", "nonsense", "<ir_version: 10>\ng (float[T x) => (y) { y = Relu (x) }"])
def test_unreadable_text_gives_one_line(text: str) -> None:
    with pytest.raises(MoecError, match="the text of the model cannot be read") as caught:
        parse_model(text)
    assert "\n" not in str(caught.value)


def test_models_with_functions_are_not_printed() -> None:
    text = """<ir_version: 10, opset_import: ["" : 24, "f" : 1]>
        g (float[T] x) => (y) { y = f.Twice (x) }
        <domain: "f", opset_import: ["" : 24]> Twice (a) => (b) { b = Add (a, a) }"""
    with pytest.raises(UnsupportedError, match=r"functions \(f.Twice\)"):
        print_model(read(text))


def test_an_attribute_of_no_printable_type_is_named_with_its_node() -> None:
    node = ir.node("Odd", [], {"kinds": ir.Attr("kinds", ir.AttributeType.TYPE_PROTOS, [])}, name="n")
    model = ir.Model(ir.Graph([], node.outputs, nodes=[node], opset_imports={"": 21}), ir_version=10)
    with pytest.raises(UnsupportedError, match=r"node 'n' \(Odd\): attribute kinds is of type type_protos; expected"):
        print_model(model)


@pytest.mark.parametrize("numbers", ["{1, 2, 3}", "{1}"])
def test_constants_with_other_numbers_than_their_shape_asks_for(numbers: str) -> None:
    text = (
        '<ir_version: 10, opset_import: ["" : 21]> g (float[2] x) => (float[2] y) <float[2] w = %s> { y = Add (x, w) }'
    )
    assert parse_model(text % "{1, 2}").graph.initializers["w"].const_value is not None
    with pytest.raises(MoecError, match="the numbers of the constant 'w' do not fit its type and shape"):
        parse_model(text % numbers)
