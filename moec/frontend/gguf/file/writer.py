"""Writer of GGUF files: another file's metadata, byte for byte except for given numbers, and other tensors.

The package ``gguf`` writes such files, too, but encodes every entry anew from the values that it read; here an entry
that does not change is copied. :mod:`moec.frontend.gguf.file.reader` describes the format.
"""

from __future__ import annotations

import dataclasses
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moec.common.errors import UnsupportedError
from moec.common.mapped_files import release_pages
from moec.frontend.gguf.file.reader import BLOCKS, MAGIC, NUMBERS, GgufFile, GgufTensor

Array = np.ndarray[Any, Any]
_VERSION = 3


@dataclasses.dataclass(frozen=True)
class NewGgufTensor:
    """A tensor to write. ``kind``: its type. ``shape``: sizes as in numpy. ``parts``: function that makes its blocks in
    pieces, uint8, whose bytes follow each other."""

    kind: str
    shape: tuple[int, ...]
    parts: Callable[[], Iterable[Array]]

    @staticmethod
    def of(tensor: GgufTensor) -> NewGgufTensor:
        """Copy of a tensor of a file."""
        return NewGgufTensor(tensor.kind, tensor.shape, lambda: (tensor.blocks,))

    @property
    def size(self) -> int:
        """Bytes of the data."""
        _, weights, size = BLOCKS[self._number]
        return math.prod(self.shape) // weights * size

    @property
    def _number(self) -> int:
        return next(number for number, block in BLOCKS.items() if block[0] == self.kind)

    def described(self, name: str, offset: int) -> bytes:
        """The entry of the table of tensors."""
        sizes = struct.pack(f"<I{len(self.shape)}Q", len(self.shape), *self.shape[::-1])
        return _text(name) + sizes + struct.pack("<IQ", self._number, offset)


def write_file(path: Path, source: GgufFile, numbers: Mapping[str, int], tensors: Mapping[str, NewGgufTensor]) -> None:
    """Write the metadata of ``source`` with other ``numbers`` by key, and tensors in the given order, as one file.

    Entries about the parts of a file in several parts are left out. Raises UnsupportedError for a key that is no whole
    number in the source, or too large for its type; OSError where the file cannot be written.
    """
    entries = [
        _with_number(source, key, numbers[key]) if key in numbers else entry.tobytes()
        for key, entry in source.entries.items()
        if not key.startswith("split.")
    ]
    head = [MAGIC, struct.pack("<IQQ", _VERSION, len(tensors), len(entries)), *entries]
    offset = 0
    for name, tensor in tensors.items():
        head.append(tensor.described(name, offset))
        offset += tensor.size + _padding(tensor.size, source.alignment)
    with open(path, "wb") as file:
        for piece in _padded(head, source.alignment):
            file.write(piece)
        for tensor in tensors.values():
            for piece in _padded(_data(tensor), source.alignment):
                file.write(piece)
            release_pages()


def _data(tensor: NewGgufTensor) -> Iterator[memoryview]:
    for part in tensor.parts():
        yield np.ascontiguousarray(part).reshape(-1).data


def _padded(pieces: Iterable[bytes | memoryview], alignment: int) -> Iterator[bytes | memoryview]:
    """The pieces, and zeros up to a multiple of the alignment behind them."""
    length = 0
    for piece in pieces:
        length += len(piece)
        yield piece
    yield bytes(_padding(length, alignment))


def _padding(length: int, alignment: int) -> int:
    return -length % alignment


def _with_number(source: GgufFile, key: str, number: int) -> bytes:
    """The entry of a key with another number of the same type."""
    place = len(_text(key))
    (kind,) = struct.unpack_from("<I", source.entries[key][place : place + 4].tobytes())
    code = NUMBERS.get(kind, "")
    where = f"{source.path}: {key} is {str(source.metadata[key])[:60]}"
    if not code or code in "fd?":
        raise UnsupportedError(f"{where}; expected one whole number, which would become {number}")
    try:
        return _text(key) + struct.pack(f"<I{code}", kind, number)
    except struct.error as error:
        raise UnsupportedError(f"{where}, of a type that cannot hold {number} ({error})") from error


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def selected(tensor: GgufTensor, entries: Sequence[int]) -> NewGgufTensor:
    """Some entries of a tensor's first axis, in this order, byte for byte."""
    shape = (len(entries), *tensor.shape[1:])
    if len(tensor.shape) == 1:  # blocks [blocks, bytes] of floats, one for each entry
        return NewGgufTensor(tensor.kind, shape, lambda: (tensor.blocks[list(entries)],))
    return NewGgufTensor(tensor.kind, shape, lambda: (tensor.blocks[entry] for entry in entries))
