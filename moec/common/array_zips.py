"""Arrays in untrusted zips (``.npz``, ``.moeprof``): sizes are checked before memory is allocated.

numpy reads the same, but parses an array's head with Python's grammar, allocates whatever a head asks for, and returns
entries that are no arrays as bytes. Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

from __future__ import annotations

import lzma
import math
import os
import re
import struct
import zipfile
import zlib
from typing import IO, Any

import numpy as np

from moec.common.errors import MoecError, one_line
from moec.common.free_memory import available_memory
from moec.common.plain_files import size_of

Array = np.ndarray[Any, Any]

ZIP_ERRORS = (
    *(zipfile.BadZipFile, OSError, EOFError, ValueError, OverflowError, struct.error, zlib.error, lzma.LZMAError),
    RuntimeError,  # an entry with a password; NotImplementedError, a kind of it: versions and methods of compression
)
"""Exceptions of the module ``zipfile`` and its decompressors for archives that are damaged, or that they cannot
read."""
_MAGIC = b"\x93NUMPY"
_LENGTHS = {1: "<H", 2: "<I", 3: "<I"}
"""Type of the head's length, by the version of the format."""
_LONGEST_HEAD = 10_000
_CHUNK = 1 << 24
_MOST_AXES = 32
_SMALL = 1 << 20
"""Bytes of arrays before which the system is not asked for free memory, which takes longer than reading them."""
_DTYPE = re.compile(r"[<>|=]?[?biufcSUV][0-9]{0,9}")
_FIELDS = {
    "descr": re.compile(r"""['"]descr['"]\s*:\s*(?:'([^']*)'|"([^"]*)")"""),
    "fortran_order": re.compile(r"""['"]fortran_order['"]\s*:\s*(True|False)"""),
    "shape": re.compile(r"""['"]shape['"]\s*:\s*\(([0-9\sL,]*)\)"""),
}
"""Fields of a head, which is a dictionary in Python's notation."""


class DamagedError(Exception):
    """An archive or an array in it is damaged, or of a kind that is not read; the text says how."""


def open_zip(path: str | os.PathLike[str]) -> zipfile.ZipFile:
    """Open an archive, which the caller closes. Raises MoecError for anything but a plain file, DamagedError for a file
    that is no zip."""
    size_of(path)
    try:
        return zipfile.ZipFile(path)
    except PermissionError as error:
        raise MoecError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ZIP_ERRORS as error:
        raise DamagedError(one_line(error)) from error


def read_entry(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    """Read the bytes of an entry. Raises DamagedError where it is missing, damaged or has more than ``most``."""
    try:
        entry = archive.getinfo(name)
        if entry.file_size > most:
            raise DamagedError(f"has {entry.file_size} bytes")
        with archive.open(entry) as file:
            return file.read(entry.file_size)
    except KeyError:
        raise DamagedError("is missing") from None
    except ZIP_ERRORS as error:
        raise DamagedError(one_line(error)) from error


def read_array(archive: zipfile.ZipFile, name: str) -> Array:
    """Read an array of numbers, text or raw bytes from an entry, in this machine's byte order. Raises DamagedError for
    an entry that is damaged, holds anything else, or is larger than free memory."""
    try:
        entry = archive.getinfo(name)
        with archive.open(entry) as file:
            return _array(file, entry.file_size)
    except KeyError:
        raise DamagedError("is missing") from None
    except ZIP_ERRORS as error:
        raise DamagedError(f"is damaged ({one_line(error)})") from error


def _array(file: IO[bytes], size: int) -> Array:
    dtype, shape, order, start = _head(file)
    expected = math.prod(shape) * dtype.itemsize
    if expected != size - start:
        raise DamagedError(f"is {dtype}{list(shape)[:8]} of {expected} bytes, and holds {size - start}")
    free = available_memory() if expected > _SMALL else 0
    if free and expected > free:
        raise DamagedError(f"has {expected >> 20} MiB; {free >> 20} MiB of memory are free")
    data = np.empty(expected, np.uint8)
    for start in range(0, expected, _CHUNK):
        chunk = file.read(min(_CHUNK, expected - start))
        if len(chunk) < min(_CHUNK, expected - start):
            raise DamagedError("ends early")
        data[start : start + len(chunk)] = np.frombuffer(chunk, np.uint8)
    if file.read(1):  # at the end, the checksum is compared
        raise DamagedError("does not end where it should")
    array = data.view(dtype).reshape(shape, order=order)  # type: ignore[call-overload]
    return array if dtype.isnative else array.astype(dtype.newbyteorder("="))


def _head(file: IO[bytes]) -> tuple[np.dtype[Any], tuple[int, ...], str, int]:
    """Read element type, shape, order of the axes in memory, and the offset of the data."""
    start = file.read(len(_MAGIC) + 2)
    code = _LENGTHS.get(start[-2]) if len(start) == len(_MAGIC) + 2 and start.startswith(_MAGIC) else None
    if code is None:
        raise DamagedError("is not an array as numpy writes it")
    packed = file.read(struct.calcsize(code))
    (length,) = struct.unpack(code, packed)
    if length > _LONGEST_HEAD:
        raise DamagedError(f"has a head of {length} bytes")
    text = file.read(length).decode("latin-1")
    fields = {key: pattern.findall(text) for key, pattern in _FIELDS.items()}
    if any(len(values) != 1 for values in fields.values()):
        raise DamagedError(f"has the head {text.strip()[:60]!r}, which is not that of an array of numbers")
    dtype = _dtype("".join(fields["descr"][0]))
    sizes = [size.strip().removesuffix("L") for size in fields["shape"][0].split(",") if size.strip()]
    if len(sizes) > _MOST_AXES or not all(size.isdecimal() and len(size) < 20 for size in sizes):
        raise DamagedError(f"has the shape {fields['shape'][0][:60]!r}")
    order = "F" if fields["fortran_order"][0] == "True" else "C"
    return dtype, tuple(map(int, sizes)), order, len(start) + len(packed) + length


def _dtype(text: str) -> np.dtype[Any]:
    """Parse an element type. Python objects, dates and records are refused, because no model takes them."""
    if not _DTYPE.fullmatch(text):
        raise DamagedError(f"is of the type {text[:30]!r}")
    try:
        dtype = np.dtype(text)
    except TypeError:
        raise DamagedError(f"is of the type {text[:30]!r}") from None
    if not 0 < dtype.itemsize <= 1 << 20:
        raise DamagedError(f"is of the type {text[:30]!r}")
    return dtype
