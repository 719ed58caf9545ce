"""Random damage to zips of arrays: the fields of their headers, their entries, and the arrays in these."""

from __future__ import annotations

import io
import pathlib
import random
import struct
import warnings
import zipfile
from collections.abc import Callable

import numpy as np

from .byte_damage import damage_bytes

Entries = dict[str, bytes]

_DESCRIPTIONS = (
    *("<f4", ">f8", "<f2", "|b1", "<i4", ">i8", "<u8", "<c8", "|O", "<U4", "|S8", "<M8[s]", "<m8", "|V2", "|V0", "<U0"),
    *("nonsense", "", "<f3", "<f99999999999", "f4,i4", "O,i4", "<U999999999", "|S2147483648"),
)
_DTYPES = ("float16", "float32", "float64", "int8", "int32", "int64", "uint64", "bool", "complex64", "U3", "S2", "V2")
_SIZES = (-1, 0, 1, 2, 97, 2**16, 2**31, 2**33, 2**40, 2**62, 2**63, 10**30, 1.5, True, None, "1", ())
_HEADS = (
    *("", "{", "()", "(" * 200, "(" * 5000, "'''", "{'descr': '<f4'}", "None", "1", "[1, 2]", "-" * 3000 + "1"),
    *("{'descr': '<f4', 'fortran_order': False, 'shape': " + "9" * 5000 + "}", "{" + "'a': 1, " * 9000 + "}"),
    *("{'descr': __import__('os').system('false'), 'fortran_order': False, 'shape': (1,)}", "\xff" * 40, "\0" * 64),
)


def array_bytes(array: np.ndarray) -> bytes:
    """An ``.npy`` file."""
    file = io.BytesIO()
    np.lib.format.write_array(file, array, allow_pickle=False)
    return file.getvalue()


def array_with_head(head: str, data: bytes, version: int = 1, length: int | None = None) -> bytes:
    """An ``.npy`` file with this text as its head; ``length``: what it says that the head has."""
    text = head.encode("latin-1" if version < 3 else "utf-8", errors="replace")
    size = len(text) if length is None else length
    return (
        b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", min(size, 65535)) + text + data
    )


def damage_zip(path: pathlib.Path, rng: random.Random) -> str:
    """Damage an archive of arrays in one to three ways."""
    if rng.random() < 0.3:
        return _damage_headers(path, rng)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    reported = []
    for _ in range(rng.choice([1, 1, 2, 3])):
        change = rng.choice(_OF_ENTRIES)
        name = rng.choice(list(entries) or ["none.npy"])
        reported.append(f"{name[:60]} {change(entries, name, rng)}")
    write_zip(path, entries, rng.choice([zipfile.ZIP_STORED] * 8 + [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA]))
    return "; ".join(reported)


def write_zip(path: pathlib.Path, entries: Entries, method: int = zipfile.ZIP_STORED) -> None:
    """Replace an archive. Names that zips do not have are left out."""
    with zipfile.ZipFile(path, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that come twice
        for name, data in entries.items():
            archive.writestr(name.removesuffix("\1"), data)


def _damage_headers(path: pathlib.Path, rng: random.Random) -> str:
    """Change the bytes of an archive, or a field of an entry in both of its headers (APPNOTE.TXT 4.3.7 and 4.3.12)."""
    data = bytearray(path.read_bytes())
    if rng.random() < 0.5:
        path.write_bytes(damaged := damage_bytes(bytes(data), rng)[0])
        return f"bytes changed, {len(damaged)} of {len(data)} are left"
    field, size, here, there = rng.choice(_FIELDS)
    value = rng.choice([0, 1, 9, 12, 14, 93, 99, 2 ** (8 * size) - 1, 2 ** (8 * size - 1)]).to_bytes(8, "little")[:size]
    number = rng.randrange(max(1, data.count(b"PK\1\2")))
    for magic, offset in ((b"PK\3\4", here), (b"PK\1\2", there)):
        place = -1
        for _ in range(number + 1):
            place = data.find(magic, place + 1)
        if place >= 0 and offset is not None:
            data[place + offset : place + offset + size] = value
    path.write_bytes(data)
    return f"entry {number}: {field} is {value.hex()}"


_FIELDS: tuple[tuple[str, int, int | None, int | None], ...] = (
    ("version", 2, 4, 6),
    ("flags", 2, 6, 8),
    ("method", 2, 8, 10),
    ("checksum", 4, 14, 16),
    ("compressed size", 4, 18, 20),
    ("size", 4, 22, 24),
    ("size in the index alone", 4, None, 24),
    ("length of the name", 2, 26, 28),
    ("length of what is extra", 2, 28, 30),
    ("disk", 2, None, 34),
    ("offset", 4, None, 42),
)
"""Name, bytes, and offset in the local header and in the central one."""


def _remove(entries: Entries, name: str, rng: random.Random) -> str:
    entries.pop(name, None)
    return "removed"


def _rename(entries: Entries, name: str, rng: random.Random) -> str:
    new = rng.choice(["x", ".npy", "../up.npy", "/etc/x.npy", "a\0b.npy", "é" * 300 + ".npy", "\ud7ff.npy", name + "/"])
    entries[new] = entries.pop(name, b"")
    return f"is called {new[:20]!r}"


def _double(entries: Entries, name: str, rng: random.Random) -> str:
    entries[f"{name}\1"] = entries.get(name, b"")
    return "is there twice"


def _empty(entries: Entries, name: str, rng: random.Random) -> str:
    entries[name] = rng.choice([b"", b"hello", bytes(100), b"\x80\x04\x95", b"{}", b"null"])
    return f"is {entries[name][:10]!r}"


def _damage_entry(entries: Entries, name: str, rng: random.Random) -> str:
    entries[name], reported = damage_bytes(entries.get(name, b"\0"), rng, 0, rng.choice([128, None]))
    return reported


def _other_head(entries: Entries, name: str, rng: random.Random) -> str:
    head, version = rng.choice(_HEADS), rng.choice([1, 1, 2, 3, 4])
    length = rng.choice([None, None, 0, 5, 60_000])
    entries[name] = array_with_head(head, bytes(64), version, length)
    return f"has the head {head[:30]!r}, version {version}, length {length}"


def _other_fields(entries: Entries, name: str, rng: random.Random) -> str:
    description = rng.choice(_DESCRIPTIONS)
    shape = tuple(rng.choice(_SIZES) for _ in range(rng.choice([0, 1, 1, 2, 3, 40])))
    order = rng.choice([False, True, 0, "x", None])
    head = f"{{'descr': {description!r}, 'fortran_order': {order!r}, 'shape': {shape!r}, }}"
    entries[name] = array_with_head(head, bytes(rng.choice([0, 8, 800])))
    return f"is {description!r} {str(shape)[:60]}"


def _other_array(entries: Entries, name: str, rng: random.Random) -> str:
    shape = tuple(rng.choice([0, 1, 2, 3, 97]) for _ in range(rng.choice([0, 1, 2, 2, 2, 3, 5])))
    dtype = np.dtype(rng.choice(_DTYPES))
    value = rng.choice([0, 1, 7, 95, 96, -1, 127, 2**31 - 1, 2**63 - 1, float("nan"), float("inf"), 1e30])
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        array = np.zeros(shape, dtype) if dtype.kind in "USV" else np.full(shape, value).astype(dtype)
    entries[name] = array_bytes(array)
    return f"is {dtype}{list(shape)} of {value}"


def _like_before(entries: Entries, name: str, rng: random.Random) -> str:
    """The same shape and type with numbers that no measurement gives."""
    try:
        array = np.lib.format.read_array(io.BytesIO(entries[name]), allow_pickle=False).copy()
        value = rng.choice([0, -1, 2**31 - 1, float("nan"), float("inf"), -1e30, 1e38, 2**62])
        with np.errstate(all="ignore"):
            new = np.full(array.shape if rng.random() < 0.3 else rng.choice([1, array.shape]), value).astype(
                array.dtype
            )
            array[rng.choice([slice(None), slice(0, 1)])] = new
    except Exception:  # whatever numpy and ast raise for an entry that an earlier change has damaged
        return "stays"
    entries[name] = array_bytes(array)
    return f"holds {value}"


def _bomb(entries: Entries, name: str, rng: random.Random) -> str:
    """A small entry of many zeros where it is compressed."""
    size = rng.choice([1 << 20, 1 << 24])
    entries[name] = array_with_head(
        f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({size},), }}", bytes(size * 4)
    )
    return f"has {size} zeros"


_OF_ENTRIES: tuple[Callable[[Entries, str, random.Random], str], ...] = (
    *(_remove, _rename, _double, _empty, _damage_entry, _other_head, _other_fields, _other_array, _like_before, _bomb),
    *(_like_before, _other_array, _damage_entry, _other_fields),
)
