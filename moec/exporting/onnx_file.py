"""Writing of ONNX files, with weights that are made while they are written.

A model is one file, or a file and one of its weights beside it. Weights go to disk piece by piece, those of experts one
expert at a time. The last entry of the file's ``metadata_props`` is a seal: protobuf appends what
follows a message to its repeated fields, so the file ends with the bytes of that entry.
"""

from __future__ import annotations

import hashlib
import pathlib
from typing import BinaryIO

import onnx
import onnx_ir as ir

from moec.common.companions import companion_name
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
_LARGEST_INLINE = 1 << 20
"""Bytes of weights that a file may have in itself. onnxruntime copies them twice, and maps those beside the file."""
_LARGE, _PAGE, _LINE = 1 << 20, 4096, 64
"""Bytes of a weight from which on it begins on a page; of a page; of a cache line, on which others begin."""
_METADATA = 14  # field of ModelProto
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


def write_file(model: ir.Model, path: pathlib.Path, output: pathlib.Path) -> None:
    """Write a model, which becomes ``output``, as one file. Where its weights are large, they are beside it
    (:mod:`moec.common.companions`). Raises UnsupportedError for a link to a file with such weights."""
    proto, weights = _without_weights(model)
    size = sum(weight.nbytes for weight in weights)
    if size <= _LARGEST_INLINE:
        for weight in weights:
            entry = _tensor(weight)
            entry.raw_data = b"".join(packed_parts(weight))
            proto.graph.initializer.append(entry)
    elif output.is_symlink():
        raise UnsupportedError(
            f"{output}: is a link, and {size / 1e6:.0f} MB of weights go beside the file that onnxruntime opens; name "
            "that file, or a folder"
        )
    else:
        data = path.with_name(f"{path.name}.data")
        _write_data(proto, weights, data)
        _name_data(proto, data.rename(data.with_name(companion_name(output.name, data))).name)
    _write_proto(proto, path)


def write_file_and_data(model: ir.Model, path: pathlib.Path) -> None:
    """Write a model as a file and, beside it, ``<name>.data`` with its weights."""
    proto, weights = _without_weights(model)
    _write_data(proto, weights, path.with_name(f"{path.name}.data"))
    _write_proto(proto, path)


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


def _write_data(proto: onnx.ModelProto, weights: list[ir.TensorProtocol], data: pathlib.Path) -> None:
    """Write weights to a file, those of the same bytes once, and entries that refer to it to the message."""
    starts: dict[bytes, int] = {}
    with data.open("wb") as file:
        for weight in weights:
            end = file.tell()
            file.write(bytes(-end % (_PAGE if weight.nbytes >= _LARGE else _LINE)))
            start = file.tell()
            offset = starts.setdefault(_write_numbers(file, weight), start)
            if offset != start:
                file.seek(end)
                file.truncate()
            place = {"location": data.name, "offset": offset, "length": weight.nbytes}
            entry = _tensor(weight)
            entry.data_location = onnx.TensorProto.EXTERNAL
            entry.external_data.extend(
                onnx.StringStringEntryProto(key=key, value=str(value)) for key, value in place.items()
            )
            proto.graph.initializer.append(entry)


def _name_data(proto: onnx.ModelProto, name: str) -> None:
    """Let all entries refer to a file of this name."""
    for entry in proto.graph.initializer:
        for place in entry.external_data:
            if place.key == "location":
                place.value = name


def _write_proto(proto: onnx.ModelProto, path: pathlib.Path) -> None:
    path.write_bytes(proto.SerializeToString())
    append_seal(path, _seal_entry)


def _tensor(tensor: ir.TensorProtocol) -> onnx.TensorProto:
    return onnx.TensorProto(name=tensor.name, data_type=int(tensor.dtype), dims=tensor.shape.numpy())


def _write_numbers(file: BinaryIO, tensor: ir.TensorProtocol) -> bytes:
    """Write the bytes of a tensor. Returns their digest."""
    start, digest = file.tell(), hashlib.sha256()
    for part in packed_parts(tensor):
        file.write(part)
        digest.update(part)
        release_pages()
    if file.tell() - start != tensor.nbytes:
        raise AssertionError(f"weight {tensor.name}: {file.tell() - start} bytes; expected {tensor.nbytes}")
    return digest.digest()


def _seal_entry(length: int) -> bytes:
    """The start of an entry of metadata whose value is a seal of so many bytes."""
    value = onnx.StringStringEntryProto(key=_KEY).SerializeToString() + _tag(2) + _varint(length)
    return _tag(_METADATA) + _varint(len(value) + length) + value


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
