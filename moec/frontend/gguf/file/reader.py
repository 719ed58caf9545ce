"""Reader of GGUF files: it checks the metadata and the table of tensors, and maps the weights without reading them.

The format (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md) is little-endian: the letters ``GGUF``, a version
(2 or 3), the numbers of tensors and of metadata entries; then the entries, each a key, a type and a value; then for
each tensor a name, sizes, the innermost first, a type, and an offset into the data. The data follows the header, which
is padded to a multiple of the alignment. Strings and arrays are preceded by their length. The package ``gguf`` reads
the same format, but trusts all of these numbers.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np

from moec.common.errors import MoecError, UnsupportedError
from moec.common.mapped_files import map_file
from moec.common.plain_files import size_of

Array = np.ndarray[Any, Any]

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MOST_AXES = 4
_LONGEST_NAME = 65_535
_DEFAULT_ALIGNMENT = 32
_PART = re.compile(r"(?P<name>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf", re.DOTALL)
_STRING, _ARRAY = 8, 9
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Codes of ``struct`` for types of metadata of a fixed size, by their number."""
_SMALLEST_ENTRY, _SMALLEST_TENSOR = 8 + 4 + 1, 8 + 4 + 8 + 4 + 8
"""Bytes of an entry, and of a tensor's description, with an empty name."""

BLOCKS: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    20: ("IQ4_NL", 32, 18),
    23: ("IQ4_XS", 256, 136),
    30: ("BF16", 1, 2),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
}
"""Types of tensors by their number: name, weights of a block, bytes of a block."""
_OTHERS = {
    9: "Q8_1",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    21: "IQ3_S",
    22: "IQ2_S",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    34: "TQ1_0",
    35: "TQ2_0",
}
"""Names of types that moec does not read, for messages."""


@dataclasses.dataclass(frozen=True)
class GgufTensor:
    """A tensor in a file.

    ``where``: file and tensor, for messages. ``kind``: its type. ``shape``: sizes of the weights as in numpy, the
    innermost last. ``blocks``: view of the mapped file, uint8 [..., blocks of a row, bytes of a block]. ``factors``: in
    NVFP4 the float32 of all weights, [1], or of those of each expert, [experts]; None for ones.
    """

    where: str
    kind: str
    shape: tuple[int, ...]
    blocks: Array
    factors: Array | None = None


@dataclasses.dataclass(frozen=True)
class GgufFile:
    """Contents of a file. ``metadata``: values by key; numbers and text are Python's, arrays of numbers numpy's, arrays
    of text lists. ``tensors``: by name. ``entries``: views of the mapped metadata entries by key, each with its key and
    type."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]
    entries: dict[str, Array] = dataclasses.field(default_factory=dict)

    @property
    def alignment(self) -> int:
        """Multiple of bytes at which the data of every tensor begins."""
        return self.metadata.get("general.alignment", _DEFAULT_ALIGNMENT)


def is_file(source: Any) -> bool:
    """Whether a model's source is the path of a GGUF file, by its name or its first bytes."""
    if not isinstance(source, (str, os.PathLike)) or not Path(source).is_file():
        return False
    if Path(source).suffix == ".gguf":
        return True
    try:
        with open(source, "rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def read_file(path: str | os.PathLike[str]) -> GgufFile:
    """Read the header of a GGUF file and map the rest. For the first of several parts, read all of them.

    Raises MoecError, naming the file and the entry or tensor, for a file that is no GGUF file, is truncated, or whose
    counts, lengths, offsets or names do not fit, and for parts that are missing or do not belong together;
    UnsupportedError for versions and types of tensors that moec does not read.
    """
    first = _read_one(Path(path))
    count = _split(first, "count", 1)
    return first if count in (0, 1) else _joined(first, count)


def _split(part: GgufFile, what: str, default: int) -> int:
    """Read ``split.<what>`` of a part's metadata: its own number, or a count over all parts."""
    number = part.metadata.get(f"split.{what}", default)
    if type(number) is not int:
        raise MoecError(f"{part.path}: split.{what} is {str(number)[:20]}; expected a whole number, download it again")
    return number


def _joined(first: GgufFile, count: int) -> GgufFile:
    """Join the metadata of the first part with the tensors of all parts.

    Names of the other parts follow from the first part's file name alone, as ``llama_split_path`` of llama.cpp makes
    them: metadata is not trusted with paths.
    """
    named = _PART.fullmatch(first.path.name)
    if named is None or int(named["count"]) != count:
        raise MoecError(
            f"{first.path}: is one of {count} parts of a model by its metadata, but has the name of a whole one; "
            "expected "
            "NAME-00001-of-0000N.gguf, beside the others"
        )
    if int(named["number"]) != 1 or _split(first, "no", 0) != 0:
        raise MoecError(f"{first.path}: is not the first part of a model; expected {_part(first.path, named, 1).name}")
    tensors = dict(first.tensors)
    for number in range(2, count + 1):
        path = _part(first.path, named, number)
        part = _read_one(path)
        place = _split(part, "no", 0), _split(part, "count", 1)
        if place != (number - 1, count):
            raise MoecError(
                f"{path}: is part {place[0]} (from 0) of {place[1]} by its metadata; expected {number - 1} of {count}, "
                "download it again"
            )
        twice = next((name for name in part.tensors if name in tensors), None)
        if twice is not None:
            raise MoecError(f"{path}: has the tensor {twice!r}, and so has a part before it; download them again")
        tensors |= part.tensors
    total = _split(first, "tensors.count", len(tensors))
    if total != len(tensors):
        raise MoecError(
            f"{first.path}: has {len(tensors)} tensors in its parts; expected {total} by its metadata; they do not "
            "belong "
            "together, download them again"
        )
    return dataclasses.replace(first, tensors=tensors)


def _part(first: Path, named: re.Match[str], number: int) -> Path:
    return first.with_name(f"{named['name']}-{number:05d}-of-{named['count']}.gguf")


def _read_one(path: Path) -> GgufFile:
    try:
        stored = map_file(path) if size_of(path) else np.zeros(0, np.uint8)
    except OSError as error:
        raise MoecError(f"{path}: cannot be read: {error.strerror or error}") from error
    cursor = _Cursor(path, stored)
    tensor_count, entry_count = _counts(cursor)
    metadata: dict[str, Any] = {}
    entries: dict[str, Array] = {}
    for _ in range(entry_count):
        start = cursor.position
        key = cursor.text("the key of a metadata entry", _LONGEST_NAME)
        if key in metadata:
            raise MoecError(f"{path}: has the metadata key {key!r} twice; the file is damaged, download it again")
        metadata[key] = cursor.value(f"metadata {key!r}")
        entries[key] = stored[start : cursor.position]
    described: dict[str, tuple[tuple[int, ...], int, int]] = {}
    for _ in range(tensor_count):
        name, description = _description(cursor)
        if name in described:
            raise MoecError(f"{path}: has the tensor {name!r} twice; the file is damaged, download it again")
        described[name] = description
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment <= 0 or alignment % 8:
        raise MoecError(f"{path}: general.alignment is {str(alignment)[:40]}; expected a multiple of 8")
    data = stored[-(-cursor.position // alignment) * alignment :]
    tensors = {name: _tensor(path, name, *about, alignment, data) for name, about in described.items()}
    return GgufFile(path, metadata, tensors, entries)


class _Cursor:
    """A position in a header. Every read is checked against the bytes that are left."""

    def __init__(self, path: Path, stored: Array) -> None:
        self.path, self._stored, self.position = path, stored, 0

    @property
    def left(self) -> int:
        return len(self._stored) - self.position

    def take(self, count: int, what: str) -> bytes:
        if count > self.left:
            raise MoecError(
                f"{self.path}: {what} asks for {count} bytes at {self.position}, but the file has "
                f"{len(self._stored)}; it is truncated or damaged, download it again"
            )
        self.position += count
        return self._stored[self.position - count : self.position].tobytes()

    def number(self, code: str, what: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}"), what))[0]

    def count(self, smallest: int, what: str) -> int:
        """Read a number of things that each take at least ``smallest`` bytes. Raises MoecError for more than can be
        left."""
        number = self.number("Q", what)
        if number * smallest > self.left:
            raise MoecError(
                f"{self.path}: {what} is {number}, more than the {self.left} bytes behind it can hold; the file is "
                "truncated or damaged, download it again"
            )
        return number

    def text(self, what: str, longest: int | None = None) -> str:
        length = self.count(1, f"the length of {what}")
        if longest is not None and length > longest:
            raise MoecError(f"{self.path}: {what} has {length} bytes; the file is damaged, download it again")
        try:
            return self.take(length, what).decode("utf-8")
        except UnicodeDecodeError as error:
            raise MoecError(f"{self.path}: {what} is not UTF-8; the file is damaged, download it again") from error

    def value(self, what: str) -> Any:
        kind = self.number("I", f"the type of {what}")
        if kind == _STRING:
            return self.text(what)
        if kind == _ARRAY:
            return self._array(what)
        return self.number(self._code(kind, what), what)

    def _array(self, what: str) -> list[str] | Array:
        kind = self.number("I", f"the type of {what}")
        if kind == _STRING:
            return [self.text(what) for _ in range(self.count(8, f"the length of {what}"))]
        code = self._code(kind, what)
        dtype = np.dtype(code).newbyteorder("<")
        count = self.count(dtype.itemsize, f"the length of {what}")
        return np.frombuffer(self.take(count * dtype.itemsize, what), dtype)

    def _code(self, kind: int, what: str) -> str:
        if kind not in NUMBERS:
            raise MoecError(f"{self.path}: {what} is of the type {kind}, which GGUF does not have; download it again")
        return NUMBERS[kind]


def _counts(cursor: _Cursor) -> tuple[int, int]:
    """Check magic number and version, and read the numbers of tensors and metadata entries."""
    if cursor.left < len(MAGIC) or cursor.take(len(MAGIC), "its beginning") != MAGIC:
        raise MoecError(f"{cursor.path}: is not a GGUF file: it does not begin with GGUF; download it again")
    version = cursor.number("I", "the version")
    if version not in _VERSIONS:
        versions = " and ".join(map(str, _VERSIONS))
        problem = "is big-endian" if version >> 16 and not version & 0xFFFF else f"is of version {version}"
        raise UnsupportedError(f"{cursor.path}: {problem}; expected little-endian GGUF of versions {versions}")
    tensors = cursor.count(_SMALLEST_TENSOR, "the number of tensors")
    return tensors, cursor.count(_SMALLEST_ENTRY, "the number of metadata entries")


def _description(cursor: _Cursor) -> tuple[str, tuple[tuple[int, ...], int, int]]:
    """Read name, shape, number of the type, and offset of a tensor."""
    name = cursor.text("the name of a tensor", _LONGEST_NAME)
    what = f"tensor {name!r}"
    axes = cursor.number("I", what)
    if not 0 < axes <= _MOST_AXES:
        raise MoecError(f"{cursor.path}: {what} has {axes} axes; expected 1 to {_MOST_AXES}, download the file again")
    shape = tuple(cursor.number("Q", what) for _ in range(axes))[::-1]
    if not all(shape):
        raise MoecError(f"{cursor.path}: {what} is {list(shape)}; expected sizes of 1 or more, download the file again")
    return name, (shape, cursor.number("I", what), cursor.number("Q", what))


def _tensor(
    path: Path, name: str, shape: tuple[int, ...], kind: int, offset: int, alignment: int, data: Array
) -> GgufTensor:
    where = f"{path}: tensor {name!r}"
    if kind not in BLOCKS:
        names = ", ".join(format_name for format_name, _, _ in BLOCKS.values())
        raise UnsupportedError(f"{where}: is stored as {_OTHERS.get(kind, f'type {kind}')}; expected {names}")
    label, weights, size = BLOCKS[kind]
    if shape[-1] % weights:
        raise MoecError(f"{where}: has rows of {shape[-1]} weights; expected a multiple of {weights} for {label}")
    if offset % alignment:
        raise MoecError(f"{where}: lies at byte {offset}; expected a multiple of {alignment}: the file is damaged")
    rows = (*shape[:-1], shape[-1] // weights, size)
    length = math.prod(rows)
    if offset + length > len(data):
        raise MoecError(
            f"{where}: lies at bytes {offset} to {offset + length} of the data, but there are {len(data)}; the file is "
            "truncated, download it again"
        )
    return GgufTensor(where, label, shape, data[offset : offset + length].reshape(rows))
