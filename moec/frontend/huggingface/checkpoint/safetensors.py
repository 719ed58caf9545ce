"""Reader of safetensors files: tensors are views of the mapped file, and their data is read on demand.

The format (https://huggingface.co/docs/safetensors): 8 bytes with the length n of the header as a little-endian number;
n bytes of JSON with each tensor's ``dtype``, ``shape`` and ``data_offsets``, which count from the end of the header;
then the data. The package ``safetensors`` also maps files, but cannot release pages that its tensors have read.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.common.errors import MoecError
from moec.common.mapped_files import map_file
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


def read_file(path: Path) -> dict[str, FileTensor]:
    """Read the header of a file. Returns the tensors by name.

    Raises MoecError, naming file and tensor, for a file that is no safetensors file, element types that moec does not
    know, and offsets that do not fit the shape or leave the file.
    """
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
    header = _header(stored[_LENGTH : _LENGTH + length].tobytes(), path)
    data = stored[_LENGTH + length :]
    return {name: _tensor(name, entry, data, path) for name, entry in header.items() if name != "__metadata__"}


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
