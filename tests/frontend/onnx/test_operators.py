from __future__ import annotations

import numpy as np
import onnx.parser
import pytest
from onnx import TensorProto, helper, numpy_helper

from moec.common.errors import MoecError
from moec.frontend.onnx.importer import import_model

MOST = 2**63 - 1


def model_of(*nodes):
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", [2, 3]), ("y", None))
    )
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "i")
    graph = helper.make_graph(nodes, "graph", [x], [y], [indices])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


@pytest.mark.parametrize(
    "node, message",
    [
        (helper.make_node("ArgMax", ["x"], ["y"], "n", keepdims=MOST), f"keepdims={MOST}; expected 0 or 1"),
        (helper.make_node("ReduceMax", ["x"], ["y"], "n", keepdims=-1), "keepdims=-1; expected 0 or 1"),
        (helper.make_node("ArgMin", ["x"], ["y"], "n", select_last_index=2), "select_last_index=2; expected 0 or 1"),
        (helper.make_node("Gemm", ["x", "x"], ["y"], "n", transB=2), "transB=2; expected 0 or 1"),
        (helper.make_node("Gather", ["x", "i"], ["y"], "n", axis=-MOST - 1), f"axis={-MOST - 1}; expected a number"),
        (helper.make_node("Gather", ["x", "i"], ["y"], "n", axis=2**32), f"axis={2**32}; expected a number"),
    ],
)
def test_flags_are_0_or_1_and_axes_fit_32_bits(node, message):
    with pytest.raises(MoecError, match=f"model: node 'n': {node.op_type} .opset 17. has {message}") as caught:
        import_model(model_of(node))
    assert "\n" not in str(caught.value)


def test_flags_of_both_values_and_an_open_end_of_a_shape_stay():
    nodes = [
        helper.make_node("Gemm", ["x", "x"], ["y"], transA=0, transB=1),
        helper.make_node("Shape", ["x"], ["s"], start=1, end=MOST),
    ]
    model = import_model(model_of(*nodes))
    gemm, shape = model.graph
    assert (gemm.attributes["transA"].as_int(), gemm.attributes["transB"].as_int()) == (0, 1)
    assert shape.attributes["end"].as_int() == MOST


@pytest.mark.parametrize("number", [MOST, -MOST - 1, 2**31])
def test_a_constant_may_be_any_number_of_64_bits(number):
    nodes = [
        helper.make_node("Constant", [], ["c"], "n", value_int=number),
        helper.make_node("Add", ["i", "c"], ["s"]),
        helper.make_node("Cast", ["s"], ["y"], to=TensorProto.FLOAT),
    ]
    assert import_model(model_of(*nodes)).graph.initializers["c"].const_value.numpy() == number


def test_attributes_are_of_types_that_an_operator_can_take():
    """No schema is known of operators of com.microsoft, and no pass can compare types."""
    node = helper.make_node("SkipLayerNormalization", ["x", "x", "x"], ["y"], "n", domain="com.microsoft", epsilon=0.5)
    model = model_of(node)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    assert next(iter(import_model(model).graph)).attributes["epsilon"].as_float() == 0.5
    model.graph.node[0].attribute[0].CopyFrom(
        helper.make_attribute("epsilon", helper.make_tensor_type_proto(TensorProto.FLOAT, [2]))
    )
    with pytest.raises(MoecError, match=r"^model: node 'n' .*: attribute epsilon is of type type_proto; expected"):
        import_model(model)


def test_nodes_of_the_dialect_keep_its_rules():
    """The saved graph was edited: the gates' weights are in the place of the correction bias."""
    model = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["" : 21, "moec" : 1]>
    graph (float[T,8] x, float[T,4] logits) => (float[T,8] y)
    <float[4,6,8] gate = {}, float[4,6,8] up = {}, float[4,8,6] down = {}> {
        y = moec.MoE <k = 2> (x, logits, gate, up, down)
    }""")
    for tensor in model.graph.initializer:
        tensor.raw_data = bytes(4 * int(np.prod(tensor.dims)))
    with pytest.raises(MoecError, match=r"^model: node y \(moec.MoE\) breaks rule rank: correction_bias has rank 3"):
        import_model(model)
