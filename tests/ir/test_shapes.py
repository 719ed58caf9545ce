"""Types and shapes through moec operators, onnxruntime's operators and ONNX's own."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from moec.ir import shapes


def infer(body: str, signature: str, constants: str = "float[1] unused") -> dict[str, str]:
    """Types of all inner values and outputs after inference, as text."""
    text = f'<ir_version: 10, opset_import: ["" : 24, "com.microsoft" : 1, "moec" : 1]>\ng {signature}\n<{constants}>\n'
    model = ir.from_proto(onnx.parser.parse_model(f"{text}{{\n{body}\n}}"))
    shapes.infer(model)
    return types_of(model)


def types_of(model: ir.Model) -> dict[str, str]:
    return {value.name or "": f"{value.dtype}{value.shape}" for node in model.graph for value in node.outputs}


def test_moec_operators_and_what_follows_them() -> None:
    body = """
        w, e = moec.Route <k = 2> (logits)
        y = moec.Experts (x, w, e, up, down)
        o, a, b, c = moec.Dispatch <expert_count = 8> (e)
        r = Gather (x, b)
        p = moec.GroupedMatMul (r, up, o)
        s = moec.Combine (p, w, a)
        m = moec.MoE <k = 2> (x, logits, "", up, down)
        sum = Add (y, m)
        l = moec.Linear (x, row)
        t = moec.Linear <transposed = 1> (x, row)
        n = Shape (sum)
        shaped = Reshape (s, n)
        z = Cast <to = 7> (e)"""
    signature = (
        "(float16[T,64] x, float[T,8] logits, float16[8,64,64] up, float16[8,64,32] down, float16[48,64] row) => "
        "(z, shaped)"
    )
    assert infer(body, signature.replace("(z, shaped)", "(z, shaped, l, t, c)")) == {
        "w": "FLOAT[T,2]",
        "e": "INT32[T,2]",
        "y": "FLOAT16[T,64]",
        "o": "INT32[9]",
        "a": "INT32[T,2]",
        "b": "INT32[2*T]",
        "c": "INT32[2*T]",
        "r": "FLOAT16[2*T,64]",
        "p": "FLOAT16[2*T,64]",
        "s": "FLOAT16[T,64]",
        "m": "FLOAT16[T,64]",
        "sum": "FLOAT16[T,64]",
        "l": "FLOAT16[T,48]",
        "t": "FLOAT16[T,64]",
        "n": "INT64[2]",
        "shaped": "FLOAT16[T,64]",
        "z": "INT64[T,2]",
    }


OPERATORS = {
    "MoE": ('y = com.microsoft.MoE <k = 2> (x, r, w, "", w)', "FLOAT[B,S,64]"),
    "QuickGelu": ("y = com.microsoft.QuickGelu (x)", "FLOAT[B,S,64]"),
    "SimplifiedLayerNormalization": ("y = SimplifiedLayerNormalization (x, g)", "FLOAT[B,S,64]"),
    "sum of a skip normalisation": (
        'n, "", "", y = com.microsoft.SkipSimplifiedLayerNormalization (x, x, g)',
        "FLOAT[B,S,64]",
    ),
    "MatMulNBits": (
        "y = com.microsoft.MatMulNBits <K = 64, N = 96, bits = 4, block_size = 32> (x, q, g)",
        "FLOAT[B,S,96]",
    ),
    "FusedMatMul": ("y = com.microsoft.FusedMatMul <transB = 1> (x, x)", "FLOAT[B,S,S]"),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_of_onnxruntime(name: str) -> None:
    body, expected = OPERATORS[name]
    signature = "(float[B,S,64] x, float[T,8] r, float[8,64,64] w, float[64] g, uint8[96,2,16] q) => (z)"
    assert infer(f"{body}\nz = Relu (y)", signature)["z"] == expected


def test_sizes_read_from_shapes_keep_their_names() -> None:
    body = """
        b = Shape <start = 0, end = 1> (x)
        d = Constant <value: tensor = int64[1] {64}> ()
        minus = Constant <value: tensor = int64[1] {-1}> ()
        flat_shape = Concat <axis = 0> (minus, d)
        flat = Reshape (x, flat_shape)
        w, e = moec.Route <k = 2> (flat)
        shape = Shape (x)
        y = Reshape (flat, shape)"""
    actual = infer(body, "(float[batch,seq,64] x) => (y, w)")
    assert actual["y"] == "FLOAT[batch,seq,64]"
    assert actual["flat"].endswith(",64]")
    assert actual["w"] == actual["flat"].replace("64]", "2]")


def test_nested_graphs_are_inferred() -> None:
    text = """<ir_version: 10, opset_import: ["" : 24, "moec" : 1]>
        g (float[T,8] x, bool c) => (y) {
            y = If <then_branch = a () => (p) { w, e = moec.Route <k = 3> (x) p = Neg (w) },
                    else_branch = b () => (q) { q = Relu (x) }> (c)
        }"""
    model = ir.from_proto(onnx.parser.parse_model(text))
    shapes.infer(model)
    body = model.graph[0].attributes["then_branch"].as_graph()
    assert [str(value.shape) for value in (*body[0].outputs, *body.outputs)] == ["[T,3]", "[T,3]", "[T,3]"]


def test_what_is_known_is_kept_behind_an_unknown_operator() -> None:
    text = """<ir_version: 10, opset_import: ["" : 24, "other" : 1]>
        g (float[T,8] x) => (z) <float[T,4] y> { y = other.Mystery (x)  z = Relu (y) }"""
    model = ir.from_proto(onnx.parser.parse_model(text))
    shapes.infer(model)
    assert types_of(model) == {"y": "FLOAT[T,4]", "z": "FLOAT[T,4]"}


def test_made_up_names_give_way_when_more_is_known() -> None:
    text = """<ir_version: 10, opset_import: ["" : 24]>
        g (float[T,8] x) => (z) <float[unk__0,8] y> { y = Relu (x)  z = Relu (y) }"""
    model = ir.from_proto(onnx.parser.parse_model(text))
    shapes.infer(model)
    assert types_of(model) == {"y": "FLOAT[T,8]", "z": "FLOAT[T,8]"}


def test_weights_are_not_read() -> None:
    def refuse() -> ir.TensorProtocol:
        raise AssertionError("the numbers of a weight were read")

    x = ir.val("x", ir.DataType.FLOAT, ("T", 100))
    initializer = ir.val("w", const_value=ir.LazyTensor(refuse, ir.DataType.FLOAT, ir.Shape((100, 3)), name="w"))
    constant = ir.node(
        "Constant", [], {"value": ir.LazyTensor(refuse, ir.DataType.FLOAT, ir.Shape((3, 70)), name="v")}, name="c"
    )
    first = ir.node("MatMul", [x, initializer])
    second = ir.node("MatMul", [first.outputs[0], constant.outputs[0]])
    nodes = [constant, first, second]
    graph = ir.Graph([x], second.outputs, nodes=nodes, initializers=[initializer], opset_imports={"": 24})
    shapes.infer(ir.Model(graph, ir_version=10))
    assert second.outputs[0].shape == ir.Shape(("T", 70)) and second.outputs[0].dtype == ir.DataType.FLOAT


def test_no_schema_stays_registered() -> None:
    infer('y = moec.MoE <k = 2> (x, x, "", x, x)', "(float[T,8] x) => (y)")
    assert not onnx.defs.has("MoE", 1, "moec") and not onnx.defs.has("MoE", 1, "com.microsoft")


def test_initializers_get_the_type_of_their_tensor() -> None:
    x = ir.val("x", ir.DataType.FLOAT, ("T", 100))
    weight = ir.val("w", const_value=ir.tensor(np.zeros((100, 3), np.float32), name="w"))
    weight.shape, weight.type = None, None
    product = ir.node("MatMul", [x, weight])
    graph = ir.Graph([x], product.outputs, nodes=[product], initializers=[weight], opset_imports={"": 24})
    shapes.infer(ir.Model(graph, ir_version=10))
    assert weight.shape == ir.Shape((100, 3)) and product.outputs[0].shape == ir.Shape(("T", 3))
