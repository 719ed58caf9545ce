"""Reader and writer of safetensors files: tensors that are read are views of the mapped file, read on demand.

The format (https://huggingface.co/docs/safetensors): 8 bytes with the length n of the header as a little-endian number;
n bytes of JSON with each tensor's ``dtype``, ``shape`` and ``data_offsets``, which count from the end of the header;
then the data. The package ``safetensors`` also maps files, but cannot release pages that its tensors have
read, and writes only tensors that are all in memory.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.common.errors import MoecError
from moec.common.mapped_files import map_file, release_pages
from moec.common.plain_files import parse_json

Array = np.ndarray[Any, Any]

DTYPES = {
    "BOOL": ir.DataType.BOOL,
    "U8": ir.DataType.UINT8,
    "I8": ir.DataType.INT8,
    "I16": ir.DataType.INT16,
    "U16": ir.DataType.UINT16,
    "I32": ir.DataType.INT32,
    "U32": ir.DataType.UINT32,
    "I64": ir.DataType.INT64,
    "U64": ir.DataType.UINT64,
    "F16": ir.DataType.FLOAT16,
    "BF16": ir.DataType.BFLOAT16,
    "F32": ir.DataType.FLOAT,
    "F64": ir.DataType.DOUBLE,
    "F8_E4M3": ir.DataType.FLOAT8E4M3FN,
    "F8_E5M2": ir.DataType.FLOAT8E5M2,
    "F8_E8M0": ir.DataType.FLOAT8E8M0,
}
_METADATA = "__metadata__"
_LENGTH = 8
_LONGEST_HEADER = 100_000_000
"""Bytes; the same limit as in the format's own library."""


@dataclasses.dataclass(frozen=True)
class FileTensor:
    """A tensor of a file. ``where``: file and tensor, for messages."""

    where: str
    dtype: ir.DataType
    shape: tuple[int, ...]
    stored: Array

    def numpy(self) -> Array:
        """View the elements in the mapped file."""
        return self.stored.view(self.dtype.numpy().newbyteorder("<")).reshape(self.shape)


@dataclasses.dataclass(frozen=True)
class NewTensor:
    """A tensor to write. ``parts``: function that makes its elements in pieces that follow each other."""

    dtype: ir.DataType
    shape: tuple[int, ...]
    parts: Callable[[], Iterable[Array]]

    @staticmethod
    def of(tensor: FileTensor) -> NewTensor:
        """Copy of a tensor of a file."""
        return NewTensor(tensor.dtype, tensor.shape, lambda: (tensor.stored,))

    @property
    def size(self) -> int:
        """Bytes of the data."""
        return math.prod(self.shape) * self.dtype.bitwidth // 8


def read_file(path: Path) -> dict[str, FileTensor]:
    """Read the header of a file. Returns the tensors by name.

    Raises MoecError, naming file and tensor, for a file that is no safetensors file, element types that moec does not
    know, and offsets that do not fit the shape or leave the file.
    """
    header, data = _opened(path)
    return {name: _tensor(name, entry, data, path) for name, entry in header.items() if name != _METADATA}


def read_metadata(path: Path) -> dict[str, Any]:
    """Read the texts that a file's writer left in its header; transformers wants to find its format there."""
    metadata = _opened(path)[0].get(_METADATA, {})
    if not isinstance(metadata, dict):
        raise MoecError(f"{path}: {_METADATA} is a {type(metadata).__name__}; expected an object; download it again")
    return metadata


def write_file(path: Path, tensors: Mapping[str, NewTensor], metadata: Mapping[str, Any]) -> None:
    """Write tensors in this order. Raises OSError where the file cannot be written."""
    header: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.size
        dtype = next(label for label, dtype in DTYPES.items() if dtype == tensor.dtype)
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(_LENGTH, "little") + text)
        for tensor in tensors.values():
            for part in tensor.parts():
                file.write(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
            release_pages()


def _opened(path: Path) -> tuple[dict[str, Any], Array]:
    """Map a file. Returns its header and the data behind it."""
    if not path.is_file():
        raise MoecError(f"{path}: no such file; download the model again, with all of its files")
    if path.stat().st_size < _LENGTH:
        raise MoecError(f"{path}: holds {path.stat().st_size} bytes, too few for a safetensors file; download it again")
    try:
        stored = map_file(path)
    except OSError as error:
        raise MoecError(f"{path}: cannot be read: {error.strerror or error}") from error
    length = int.from_bytes(stored[:_LENGTH].tobytes(), "little")
    if length > min(len(stored) - _LENGTH, _LONGEST_HEADER):
        raise MoecError(
            f"{path}: its header has {length} bytes and the file {len(stored)}; it is truncated, or not a "
            "safetensors file"
        )
    return _header(stored[_LENGTH : _LENGTH + length].tobytes(), path), stored[_LENGTH + length :]


def _header(text: bytes, path: Path) -> dict[str, Any]:
    try:
        header = parse_json(text)
    except ValueError as error:
        raise MoecError(
            f"{path}: is not a safetensors file: its header is not JSON ({str(error)[:100]}); download it again"
        ) from error
    if not isinstance(header, dict):
        raise MoecError(f"{path}: its header is a {type(header).__name__}; expected an object; download it again")
    return header


def _tensor(name: str, entry: Any, data: Array, path: Path) -> FileTensor:
    where = f"{path}: tensor {name!r}"
    if not isinstance(entry, dict):
        raise MoecError(f"{where}: its entry is not an object; the file is damaged, download it again")
    dtype = DTYPES.get(str(entry.get("dtype")))
    if dtype is None:
        raise MoecError(f"{where}: has the dtype {str(entry.get('dtype'))[:40]!r}; expected one of {', '.join(DTYPES)}")
    shape, offsets = (_whole_numbers(entry.get(key), key, where) for key in ("shape", "data_offsets"))
    if len(offsets) != 2:
        raise MoecError(f"{where}: has {len(offsets)} data_offsets; expected 2; the file is damaged")
    start, end = offsets
    expected = math.prod(shape) * dtype.bitwidth // 8
    if end - start != expected:
        raise MoecError(
            f"{where}: lies at bytes {start} to {end}, but its shape {list(shape)} asks for {expected} bytes; the file "
            "is damaged, download it again"
        )
    if end > len(data):
        raise MoecError(
            f"{where}: lies at bytes {start} to {end} of the data, but there are {len(data)}; the file is truncated, "
            "download it again"
        )
    return FileTensor(where, dtype, shape, data[start:end])


def _whole_numbers(value: Any, key: str, where: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(number) is int and 0 <= number < 2**62 for number in value):
        raise MoecError(f"{where}: its {key} is {str(value)[:100]!r}; expected whole numbers; the file is damaged")
    return tuple(value)
