"""Check that all texts of an ONNX message are UTF-8.

Protobuf returns other texts as bytes, and code that expects a name fails on them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx

from moec.common.errors import MoecError

_Texts = Iterator[tuple[str, Iterable[str | bytes]]]


def check_texts(proto: onnx.ModelProto, where: str) -> None:
    """Raise MoecError, naming the place, for text that is not UTF-8."""
    for place, texts in _of_model(proto):
        if not all(isinstance(text, str) for text in texts):
            raise MoecError(f"{where}: {place} has a name or a text that is not UTF-8; the file is damaged")


def _of_model(proto: onnx.ModelProto) -> _Texts:
    yield "the model", (proto.producer_name, proto.producer_version, proto.domain, proto.doc_string)
    yield "the model", (text for entry in proto.metadata_props for text in (entry.key, entry.value))
    yield "an opset", (entry.domain for entry in proto.opset_import)
    yield from _of_graph(proto.graph, "the graph")
    for position, function in enumerate(proto.functions):
        place = f"function {position}"
        yield place, (function.name, function.domain, function.doc_string, getattr(function, "overload", ""))
        yield place, (*function.input, *function.output, *function.attribute)
        yield place, (entry.domain for entry in function.opset_import)
        yield from _of_values(function.value_info, place)
        yield from _of_nodes(function.node, f"{place}: ")
        yield from _of_attributes(function.attribute_proto, place)


def _of_graph(graph: onnx.GraphProto, place: str) -> _Texts:
    yield place, (graph.name, graph.doc_string)
    yield place, (text for entry in graph.metadata_props for text in (entry.key, entry.value))
    for values in (graph.input, graph.output, graph.value_info):
        yield from _of_values(values, place)
    for tensor in graph.initializer:
        yield from _of_tensor(tensor, place)
    yield from _of_nodes(graph.node, "" if place == "the graph" else f"{place}: ")


def _of_values(values: Iterable[onnx.ValueInfoProto], place: str) -> _Texts:
    for value in values:
        yield f"a value of {place}", (value.name, value.doc_string)
        if value.type.HasField("tensor_type"):
            yield (
                f"the shape of a value of {place}",
                (size.dim_param for size in value.type.tensor_type.shape.dim if size.HasField("dim_param")),
            )


def _of_nodes(nodes: Iterable[onnx.NodeProto], place: str) -> _Texts:
    for position, node in enumerate(nodes):
        here = f"{place}node {position}"
        yield here, (node.name, node.op_type, node.domain, *node.input, *node.output)
        if node.doc_string or node.metadata_props:
            yield here, (node.doc_string, *(text for entry in node.metadata_props for text in (entry.key, entry.value)))
        yield from _of_attributes(node.attribute, here)


def _of_attributes(attributes: Iterable[onnx.AttributeProto], place: str) -> _Texts:
    for attribute in attributes:
        yield f"an attribute of {place}", (attribute.name, attribute.ref_attr_name, attribute.doc_string)
        if attribute.s or attribute.strings:
            yield f"an attribute of {place}", (_decoded(text) for text in (attribute.s, *attribute.strings))
        if attribute.HasField("t"):
            yield from _of_tensor(attribute.t, place)
        for tensor in attribute.tensors:
            yield from _of_tensor(tensor, place)
        if attribute.HasField("g"):
            yield from _of_graph(attribute.g, f"a graph of {place}")
        for graph in attribute.graphs:
            yield from _of_graph(graph, f"a graph of {place}")


def _of_tensor(tensor: onnx.TensorProto, place: str) -> _Texts:
    yield f"a tensor of {place}", (tensor.name, tensor.doc_string)
    if tensor.external_data:
        yield f"a tensor of {place}", (text for entry in tensor.external_data for text in (entry.key, entry.value))


def _decoded(text: bytes) -> str | bytes:
    """Decode an attribute's text: attributes hold bytes, and operators read them as UTF-8."""
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError:
        return text
