"""Types and shapes of all values of a model, with names for the sizes that are only known when it runs.

ONNX's own inference does the work, data propagation included (so ``Reshape`` to sizes read with ``Shape`` keeps the
names), helped by the schemas of :mod:`moec.ir.schemas`. Weights are not part of what is handed to it.
"""

from __future__ import annotations

import math
import re

import onnx
import onnx_ir as ir

from moec.common.errors import UnsupportedError
from moec.common.names import node_name, operator_name
from moec.ir import schemas
from moec.ir.opsets import OPSET, version_for

_LARGEST_SHAPE_CONSTANT = 64
"""Constants with more elements are never sizes, axes or splits: inference sees their type only."""

_MOST_ELEMENTS = 1 << 40
_LONGEST_VECTOR = 1 << 16

_GENERATED_NAME = re.compile(r"unk__\d+")
"""The names ONNX's inference makes up. They are dropped before it runs again, since it may know better by then."""


def infer(model: ir.Model) -> None:
    """Set type and shape of every value that can be inferred, in place, in nested graphs too.

    What is set already is kept and refined. Values behind an operator nobody has a rule for stay as they are.
    Raises onnx.shape_inference.InferenceError when the model is not a valid graph at all, and UnsupportedError for a
    value that no memory can hold.
    """
    proto = onnx.ModelProto(ir_version=model.ir_version, graph=_without_weights(model.graph))
    imports = {"moec": 1, "com.microsoft": 1, **model.opset_imports}
    imports[""] = version_for(model.graph, imports.get("", OPSET))
    proto.opset_import.extend(onnx.OperatorSetIdProto(domain=d, version=v) for d, v in imports.items())
    proto.functions.extend(ir.serde.serialize_function(function) for function in model.functions.values())
    with schemas.registered():
        inferred = onnx.shape_inference.infer_shapes(proto, check_type=False, strict_mode=False, data_prop=True)
    _adopt(model.graph, inferred.graph, proto.graph)
    _check_sizes(model.graph)


def _check_sizes(graph: ir.Graph) -> None:
    """Raises UnsupportedError for a value that no memory can hold: a file of a few bytes may expand a number so."""
    for node in graph:
        for value in node.outputs:
            elements = math.prod(size for size in value.shape or () if isinstance(size, int))
            if elements > _MOST_ELEMENTS:
                raise UnsupportedError(
                    f"node {node_name(node)!r} ({operator_name(node)}): its result has the shape "
                    f"{[str(size) for size in value.shape or ()]}; expected at most {_MOST_ELEMENTS} elements"
                )


def _without_weights(graph: ir.Graph) -> onnx.GraphProto:
    """The graph as a message in which large constants are inputs of the same name, type and shape."""
    proto = onnx.GraphProto(name=graph.name or "graph")
    for value in graph.inputs:
        proto.input.append(ir.serde.serialize_value(value))
    for value in graph.initializers.values():
        _add_constant(proto, value, value.const_value)
    for node in graph:
        tensor = _large_constant(node)
        if tensor is not None:
            _add_constant(proto, node.outputs[0], tensor)
            continue
        ir.serde.serialize_node_into(proto.node.add(), node)
        for value in node.outputs:
            _forget_generated_names(value)
            if value.name and value.type is not None and not value.is_graph_output():
                ir.serde.serialize_value_into(proto.value_info.add(), value)
    proto.output.extend(ir.serde.serialize_value(value) for value in graph.outputs)
    return proto


def _large_constant(node: ir.Node) -> ir.TensorProtocol | None:
    if node.op_type != "Constant" or node.domain != "" or "value" not in node.attributes:
        return None
    tensor = node.attributes["value"].as_tensor()
    return tensor if tensor.size > _LARGEST_SHAPE_CONSTANT else None


def _add_constant(proto: onnx.GraphProto, value: ir.Value, tensor: ir.TensorProtocol | None) -> None:
    if tensor is not None and tensor.size <= _LARGEST_SHAPE_CONSTANT:
        proto.initializer.append(ir.serde.serialize_tensor(tensor))
        proto.initializer[-1].name = value.name or ""
        return
    if tensor is not None:
        value.shape, value.dtype = ir.Shape(tensor.shape.numpy()), tensor.dtype
    if not value.is_graph_input():
        proto.input.append(ir.serde.serialize_value(value))
        if tensor is not None:
            ir.serde.serialize_shape_into(proto.input[-1].type, shape_for_inference(tensor))


def shape_for_inference(tensor: ir.TensorProtocol) -> ir.Shape:
    """The shape that is passed to ONNX's inference. Data propagation makes a message of each element of a vector, even
    of unknown ones, so the size of a long vector is left out."""
    sizes = tensor.shape.numpy()
    return ir.Shape([None] if len(sizes) == 1 and sizes[0] > _LONGEST_VECTOR else sizes)


def _forget_generated_names(value: ir.Value) -> None:
    if any(map(_is_generated, value.shape or ())):
        value.shape = ir.Shape([None if _is_generated(dim) else dim for dim in value.shape or ()])


def _is_generated(dim: int | ir.SymbolicDim) -> bool:
    return isinstance(dim, ir.SymbolicDim) and _GENERATED_NAME.fullmatch(dim.value or "") is not None


def _adopt(graph: ir.Graph, proto: onnx.GraphProto, original: onnx.GraphProto) -> None:
    """Copy the inferred types to values of the same names, except types that equal the ``original`` ones."""
    inferred, before = (
        {info.name: info.type for info in (*described.value_info, *described.output)} for described in (proto, original)
    )
    for value in (*graph.outputs, *(output for node in graph for output in node.outputs)):
        kind = inferred.get(value.name or "")
        if kind is not None and kind.WhichOneof("value") is not None and kind != before.get(value.name or ""):
            value.type = ir.serde.deserialize_type_proto_for_type(kind)
            value.shape = ir.serde.deserialize_type_proto_for_shape(kind)
    computed = (node for node in graph if _large_constant(node) is None)
    for node, node_proto, node_given in zip(computed, proto.node, original.node, strict=True):
        for attribute, attribute_given in zip(node_proto.attribute, node_given.attribute, strict=True):
            if attribute.type == onnx.AttributeProto.GRAPH:
                _adopt(node.attributes[attribute.name].as_graph(), attribute.g, attribute_given.g)
