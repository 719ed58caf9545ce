"""ONNX's C++ code in a separate process: whatever happens to that process is one error here."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from moec.common.child import Limits
from moec.common.errors import MoecError
from moec.frontend.onnx import onnx_process
from moec.frontend.onnx.importer import import_model
from moec.ir.opsets import OPSET


def model_of(*nodes, opset=OPSET, constants=None, x=(2, 3), kind=TensorProto.FLOAT):
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()]
    inputs, outputs = [helper.make_tensor_value_info("x", kind, x)], [helper.make_tensor_value_info("y", kind, None)]
    graph = helper.make_graph(list(nodes), "graph", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def refuse(proto, message, kind=MoecError):
    with pytest.raises(kind, match=message) as caught:
        import_model(proto)
    assert "\n" not in str(caught.value)


def test_a_message_is_converted():
    squeeze = model_of(helper.make_node("Squeeze", ["x"], ["y"], axes=[0]), opset=11, x=(1, 3))
    converted = onnx.load_model_from_string(onnx_process.convert(squeeze.SerializeToString(), 11, OPSET))
    assert converted.opset_import[0].version == OPSET
    assert [node.op_type for node in converted.graph.node][-1] == "Squeeze"
    assert len(converted.graph.node[-1].input) == 2


def test_a_message_at_the_target_comes_back_as_it_was():
    message = model_of(helper.make_node("Relu", ["x"], ["y"])).SerializeToString()
    assert onnx_process.convert(message, OPSET, OPSET) == message


@pytest.mark.parametrize("opset", [13, OPSET])
def test_what_kills_the_process_is_an_error(opset):
    """ONNX's inference reads before the start of the shape when batch_dims is negative."""
    node = helper.make_node("GatherND", ["x", "i"], ["y"], "reader", batch_dims=-2)
    refuse(model_of(node, opset=opset, constants={"i": np.zeros((2, 1), np.int64)}), "crashes with SIG|batch_dims")


def test_what_fills_the_memory_is_an_error(monkeypatch):
    """Data propagation makes a message for every element of an integer vector, known or not."""
    monkeypatch.setattr(onnx_process, "LIMITS", Limits(60, 64 << 20))
    nodes = [helper.make_node("Range", ["zero", "limit", "one"], ["r"]), helper.make_node("Cast", ["r"], ["y"], to=7)]
    constants = {"zero": np.int64(0), "limit": np.int64(2**40), "one": np.int64(1)}
    refuse(model_of(*nodes, constants=constants, kind=TensorProto.INT64), "needs more than 64 MB of memory")


@pytest.mark.parametrize(
    "node, constants, message",
    [
        (helper.make_node("Concat", ["x", "x"], ["y"], axis=7), {}, "a node Concat: .*axis"),
        (
            helper.make_node("MatMul", ["x", "w"], ["y"], "n"),
            {"w": np.ones((4, 2), np.float32)},
            "'n' .MatMul.: Incompatible",
        ),
        (helper.make_node("Gather", ["x", "i"], ["y"], "n"), {"i": np.ones(2, np.float32)}, "Gather.*unsupported type"),
        (helper.make_node("Transpose", ["x"], ["y"], "n", perm=[0, 5]), {}, "'n' .Transpose.: .*perm"),
    ],
)
def test_what_contradicts_an_operator_names_the_node(node, constants, message):
    refuse(model_of(node, constants=constants), f"the model is inconsistent: .*{message}")


def test_an_operator_without_a_conversion():
    message = model_of(helper.make_node("Upsampel", ["x"], ["y"]), opset=17).SerializeToString()
    with pytest.raises(onnx_process.ConversionError, match="Upsampel"):
        onnx_process.convert(message, 17, OPSET)


@pytest.mark.parametrize("shape, opset", [([2, 3], 17), ([9, 9], 17), ([9, 9], OPSET), (["T", "U", "V"], OPSET)])
def test_wrong_shapes_of_inner_values_are_forgotten(shape, opset):
    proto = model_of(helper.make_node("Abs", ["x"], ["a"]), helper.make_node("Neg", ["a"], ["y"]), opset=opset)
    proto.graph.value_info.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, shape))
    model = import_model(proto)
    (actual,) = (value.shape for node in model.graph for value in node.outputs if value.name == "a")
    assert actual is None if shape != [2, 3] else list(actual) == [2, 3]
