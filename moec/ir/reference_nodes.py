"""Changes to nodes, in place, that :mod:`onnx.reference` needs before it evaluates them."""

from __future__ import annotations

import numpy as np
import onnx

from moec.ir.weights.stored import WIDTH

FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
"""Types that an evaluation in float64 widens."""
_TYPE_ATTRIBUTES = frozenset({"to", "dtype", "output_dtype", "output_datatype"})


def name_unused_outputs(node: onnx.NodeProto) -> None:
    """Name outputs without a name: onnx.reference would pass an output named "" to every absent input."""
    for index, name in enumerate(node.output):
        node.output[index] = name or "(unused)"
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs):
            for inner in body.node:
                name_unused_outputs(inner)


def forget_width(node: onnx.NodeProto) -> None:
    """Remove the attribute for the bits in use (:mod:`moec.ir.weights.stored`). It changes no number, and
    onnx.reference refuses attributes that it does not know."""
    if node.op_type == "DequantizeLinear":
        kept = [attribute for attribute in node.attribute if attribute.name != WIDTH]
        del node.attribute[:]
        node.attribute.extend(kept)


def widen_node(node: onnx.NodeProto) -> None:
    """Turn every float type a node's attributes mention into float64, in nested graphs too."""
    if node.op_type == "ConstantOfShape" and not node.attribute:
        node.attribute.append(onnx.helper.make_attribute("value", onnx.numpy_helper.from_array(np.zeros(1))))
    for attribute in node.attribute:
        if attribute.name in _TYPE_ATTRIBUTES and attribute.i in FLOATS:
            attribute.i = onnx.TensorProto.DOUBLE
        elif attribute.HasField("t"):
            _widen_tensor(attribute.t)
        elif node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
            values = np.float64(attribute.f) if attribute.name == "value_float" else np.array(attribute.floats, float)
            attribute.CopyFrom(onnx.helper.make_attribute("value", onnx.numpy_helper.from_array(np.asarray(values))))
        for body in (attribute.g, *attribute.graphs):
            for inner in body.node:
                widen_node(inner)
            for tensor in body.initializer:
                _widen_tensor(tensor)


def _widen_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_type in FLOATS:
        array = onnx.numpy_helper.to_array(tensor).astype(np.float64)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
