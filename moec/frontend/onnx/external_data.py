"""Checks of tensors before anything reads them: a model file is untrusted input.

Weights stay memory-mapped files; nothing here reads their data.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from moec.common.errors import MoecError
from moec.common.mapped_files import map_file


def check_tensors(proto: onnx.ModelProto, folder: Path | None, where: str) -> None:
    """Check every tensor of the model: its data has the size its shape says, and external data is a part of a file
    inside ``folder`` (None: external data is refused, because there is no folder it could be relative to).

    Raises MoecError naming the tensor.
    """
    for tensor in _tensors(proto):
        place = f"{where}: tensor {tensor.name!r}"
        if any(size < 0 for size in tensor.dims):
            raise MoecError(f"{place} has the negative size {min(tensor.dims)}; export the model again")
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            _check_external(tensor, folder, place)
        elif tensor.HasField("raw_data") and len(tensor.raw_data) != _bytes_of(tensor, place):
            raise MoecError(
                f"{place} holds {len(tensor.raw_data)} bytes; expected {_bytes_of(tensor, place)} for its shape "
                f"{list(tensor.dims)}; the file is damaged, export the model again"
            )
        elif not tensor.HasField("raw_data"):
            _check_typed_data(tensor, place)


def external_files(proto: onnx.ModelProto, folder: Path) -> list[Path]:
    """List the files, sorted by name, in which tensors of a checked model lie."""
    tensors = [tensor for tensor in _tensors(proto) if tensor.data_location == onnx.TensorProto.EXTERNAL]
    places = {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}
    return [folder / place for place in sorted(places)]


def map_weights(model: ir.Model) -> None:
    """Give external weights of one file one memory map, copy weights inside the model's file out of it once, and keep
    those of 4 bits and fewer packed until they are read.

    ONNX IR maps the whole file for each tensor, and some thousand weights of a large model exhaust the address space.
    For a weight inside the model's file it would copy all experts whenever one is read.
    """
    maps: dict[str, np.ndarray] = {}
    for value in (value for graph in model.graphs() for value in graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or tensor.size == 0:
            continue
        if isinstance(tensor, ir.ExternalTensor):
            if tensor.path not in maps:
                maps[tensor.path] = map_file(tensor.path)
            start = tensor.offset or 0
            value.const_value = _over_bytes(maps[tensor.path][start : start + tensor.nbytes], tensor)
        elif isinstance(tensor, ir.TensorProtoTensor) and tensor.raw.HasField("raw_data"):
            value.const_value = _over_bytes(np.frombuffer(tensor.raw.raw_data, np.uint8), tensor)


def _over_bytes(stored: np.ndarray, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """Make a tensor of the same type, shape and name over the bytes that ONNX stores."""
    if tensor.dtype.bitwidth < 8:
        return ir.PackedTensor(stored, tensor.dtype, shape=tensor.shape.numpy(), name=tensor.name)
    array = stored.view(tensor.dtype.numpy().newbyteorder("<")).reshape(tensor.shape.numpy())
    return ir.Tensor(array, dtype=tensor.dtype, name=tensor.name)


def _check_external(tensor: onnx.TensorProto, folder: Path | None, place: str) -> None:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    if folder is None:
        raise MoecError(
            f"{place} lies in the file {location!r}, but a model given in memory has no folder; pass the path of the "
            "model file instead"
        )
    path = _path_inside(location, folder, place)
    offset = _whole_number(entries.get("offset", "0"), "offset", place)
    expected = _bytes_of(tensor, place)
    length = _whole_number(entries.get("length", str(expected)), "length", place)
    if length != expected:
        raise MoecError(
            f"{place} has {length} bytes in {location!r}; expected {expected} for its shape {list(tensor.dims)}; "
            "model and data do not belong together"
        )
    size = path.stat().st_size
    if offset + length > size:
        raise MoecError(
            f"{place} lies at bytes {offset} to {offset + length} of {location!r}, but that file has {size}; it is "
            "truncated or belongs to another model"
        )


def _path_inside(location: str, folder: Path, place: str) -> Path:
    """Resolve a data file's path. Raises MoecError unless it is a plain file in the model's folder after following
    links."""
    outside = f"{place}: its data file {location!r} is outside the model's folder; move it there and fix the model"
    if not location or "\0" in location or os.path.isabs(location) or ".." in Path(location).parts:
        raise MoecError(outside)
    path = folder / location
    try:
        is_inside, is_file = path.resolve().is_relative_to(folder.resolve()), os.path.isfile(f"{folder}/{location}")
    except (OSError, RuntimeError) as error:  # a name that is too long; RuntimeError: links in a circle
        reason = getattr(error, "strerror", None) or error
        raise MoecError(f"{place}: its data file {location[:80]!r} cannot be found: {reason}") from error
    if not is_inside:
        raise MoecError(outside)
    if not is_file:
        raise MoecError(f"{place}: its data file {location!r} is missing in {folder}; copy it next to the model")
    if path.stat().st_nlink > 1:
        raise MoecError(f"{place}: its data file {location!r} is a hard link, which could lead outside; copy the file")
    return path


_MOST_DIGITS = 19
"""Digits of the largest number of bytes that a file can have."""


def _whole_number(text: str, what: str, place: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS):
        raise MoecError(f"{place}: the {what} of its external data is {text[:40]!r}; expected a whole number of bytes")
    return int(text)


def _bytes_of(tensor: onnx.TensorProto, place: str) -> int:
    try:
        bits = ir.DataType(tensor.data_type).bitwidth
    except (ValueError, TypeError):
        raise MoecError(f"{place} has the unknown or unsupported element type {tensor.data_type}") from None
    return -(-_elements_of(tensor) * bits // 8)


def _elements_of(tensor: onnx.TensorProto) -> int:
    count = 1
    for size in tensor.dims:
        count *= size
    return count


_TYPED_FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")
_COMPLEX = (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128)


def _check_typed_data(tensor: onnx.TensorProto, place: str) -> None:
    """Check the number of entries of typed fields: one per element, except packed types of 4 bits and fewer and complex
    numbers."""
    actual = sum(len(getattr(tensor, field)) for field in _TYPED_FIELDS)
    expected = _elements_of(tensor)
    if tensor.data_type in _COMPLEX:
        expected *= 2
    elif tensor.data_type != onnx.TensorProto.STRING:
        expected = min(expected, _bytes_of(tensor, place))
    if actual != expected:
        raise MoecError(
            f"{place} holds {actual} values; expected {expected} for its shape {list(tensor.dims)}; the file is "
            "damaged, export the model again"
        )


def _tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    yield from _tensors_of_graph(proto.graph)
    for function in proto.functions:
        for node in function.node:
            yield from _tensors_of_node(node)


def _tensors_of_graph(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield sparse.values
        yield sparse.indices
    for node in graph.node:
        yield from _tensors_of_node(node)


def _tensors_of_node(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        if attribute.HasField("g"):
            yield from _tensors_of_graph(attribute.g)
        for graph in attribute.graphs:
            yield from _tensors_of_graph(graph)
