"""Writing of ONNX files, with weights that are made while they are written.

A model is one file of at most 2 GB, or a file and one of its weights beside it. Weights go to disk piece by piece,
those of experts one expert at a time. The last entry of the file's ``metadata_props`` is a seal: protobuf appends what
follows a message to its repeated fields, so the file ends with the bytes of that entry.
"""

from __future__ import annotations

import pathlib
from typing import BinaryIO

import onnx
import onnx_ir as ir

from moec.common.errors import UnsupportedError
from moec.common.mapped_files import release_pages
from moec.common.names import node_name, operator_name
from moec.common.seals import append_seal
from moec.common.version import VERSION
from moec.ir.dialect import DOMAIN
from moec.ir.opsets import version_for
from moec.ir.weights.stacks import packed_parts

_INLINE = 1024
"""Bytes of a constant from which on it is written on its own."""
_LARGEST = (1 << 31) - (1 << 12)
"""Bytes of a file that protobuf reads, less the seal."""
_ALIGNED = 4096
_GRAPH, _INITIALIZER, _RAW_DATA, _METADATA = 7, 5, 9, 14  # fields of ModelProto, GraphProto, TensorProto, ModelProto
_KEY = "moec"


class _NodeNames:
    """Names that were not given before."""

    def __init__(self) -> None:
        self._given: dict[str, int] = {}

    def new(self, wish: str) -> str:
        """``wish``, or ``wish`` with a number."""
        name = wish
        while name in self._given:
            self._given[wish] += 1
            name = f"{wish}_{self._given[wish]}"
        self._given[name] = 1
        return name


def finish(model: ir.Model) -> None:
    """Leave what other programs read: no operator of moec's without a function, no metadata of moec's, and opsets that
    are in use. Raises UnsupportedError for operators that have no spelling in ONNX."""
    nodes, names = list(model.graph.all_nodes()), _NodeNames()
    for node in nodes:
        if node.domain == DOMAIN and node.op_identifier() not in model.functions:
            raise UnsupportedError(
                f"node {node_name(node)}: {operator_name(node)} cannot be written in ONNX; compile the model instead"
            )
        node.metadata_props.clear()
        node.name = names.new(node_name(node))  # onnxruntime refuses two nodes of one name
    versions = {domain: model.opset_imports.get(domain, 1) for domain in sorted({node.domain for node in nodes})}
    inner = [node for function in model.functions.values() for node in ir.traversal.RecursiveGraphIterator(function)]
    version = version_for([*nodes, *inner])
    model.opset_imports.clear()
    model.opset_imports.update(versions | {"": version})
    for function in model.functions.values():
        function.opset_imports[""] = version
    model.metadata_props.clear()
    for graph in model.graphs():
        graph.metadata_props.clear()
    model.producer_name, model.producer_version, model.doc_string = "moec", VERSION, None


def write_file(model: ir.Model, path: pathlib.Path) -> None:
    """Write a model as one file. Raises UnsupportedError for one of more than 2 GB."""
    proto, weights = _without_weights(model)
    heads = [_header(weight) for weight in weights]
    entries = [_inline_size(head, weight.nbytes) for head, weight in zip(heads, weights, strict=True)]
    graph = proto.graph.SerializeToString()
    proto.ClearField("graph")
    size = len(graph) + sum(_sized(_INITIALIZER, entry) for entry in entries)
    if size > _LARGEST:
        raise UnsupportedError(
            f"the model has {size / 1e9:.1f} GB, and an ONNX file holds 2 GB; name a folder instead of a file, and "
            "the form by --for"
        )
    with path.open("wb") as file:
        file.write(proto.SerializeToString() + _tag(_GRAPH) + _varint(size) + graph)
        for head, entry, weight in zip(heads, entries, weights, strict=True):
            file.write(_tag(_INITIALIZER) + _varint(entry) + head + _tag(_RAW_DATA) + _varint(weight.nbytes))
            _write_numbers(file, weight)
    append_seal(path, _seal_entry)


def write_file_and_data(model: ir.Model, path: pathlib.Path) -> None:
    """Write a model as a file and, beside it, ``<name>.data`` with its weights."""
    proto, weights = _without_weights(model)
    data = path.with_name(f"{path.name}.data")
    with data.open("wb") as file:
        for weight in weights:
            file.write(bytes(-file.tell() % _ALIGNED if weight.nbytes >= _ALIGNED else 0))
            place = {"location": data.name, "offset": file.tell(), "length": weight.nbytes}
            entry = _tensor(weight)
            entry.data_location = onnx.TensorProto.EXTERNAL
            entry.external_data.extend(
                onnx.StringStringEntryProto(key=key, value=str(value)) for key, value in place.items()
            )
            proto.graph.initializer.append(entry)
            _write_numbers(file, weight)
    path.write_bytes(proto.SerializeToString())
    append_seal(path, _seal_entry)


def _without_weights(model: ir.Model) -> tuple[onnx.ModelProto, list[ir.TensorProtocol]]:
    """The message of a model without its larger constants, and these. The model is left without them."""
    constants = model.graph.initializers
    weights: list[ir.TensorProtocol] = []
    for name in list(constants):
        tensor = constants[name].const_value
        if tensor is not None and tensor.dtype != ir.DataType.STRING and tensor.nbytes >= _INLINE:
            tensor.name = name
            weights.append(tensor)
            del constants[name]
    return ir.to_proto(model), weights


def _tensor(tensor: ir.TensorProtocol) -> onnx.TensorProto:
    return onnx.TensorProto(name=tensor.name, data_type=int(tensor.dtype), dims=tensor.shape.numpy())


def _header(tensor: ir.TensorProtocol) -> bytes:
    return _tensor(tensor).SerializeToString()


def _inline_size(header: bytes, size: int) -> int:
    return len(header) + _sized(_RAW_DATA, size)


def _write_numbers(file: BinaryIO, tensor: ir.TensorProtocol) -> None:
    start = file.tell()
    for part in packed_parts(tensor):
        file.write(part)
        release_pages()
    if file.tell() - start != tensor.nbytes:
        raise AssertionError(f"weight {tensor.name}: {file.tell() - start} bytes; expected {tensor.nbytes}")


def _seal_entry(length: int) -> bytes:
    """The start of an entry of metadata whose value is a seal of so many bytes."""
    value = onnx.StringStringEntryProto(key=_KEY).SerializeToString() + _tag(2) + _varint(length)
    return _tag(_METADATA) + _varint(len(value) + length) + value


def _sized(field: int, size: int) -> int:
    """Bytes of a field that holds ``size`` bytes."""
    return len(_tag(field)) + len(_varint(size)) + size


def _tag(field: int) -> bytes:
    """The key of a field that holds bytes."""
    return _varint(field << 3 | 2)


def _varint(number: int) -> bytes:
    """A number as protobuf writes it: 7 bits to a byte, the lowest first."""
    rest, digits = number, bytearray()
    while rest > 127:
        digits.append(rest & 127 | 128)
        rest >>= 7
    return bytes([*digits, rest])
