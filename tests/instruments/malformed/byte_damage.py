"""Random damage to the bytes of a file, whatever it holds."""

from __future__ import annotations

import os
import pathlib
import random
from collections.abc import Callable

_FOREIGN = (
    *(b"", b"\0" * 64, b"\xff" * 64, b"text\n" * 20, b"{}", b"[]", b"PK\3\4" + bytes(60), b"PK\5\6" + bytes(18)),
    *(b"\x80\x04\x95pickle.", b"\x93NUMPY\1\0", b"GGUF", b"\x1f\x8b" + bytes(30), "é".encode("latin-1") * 40),
)


def damage_bytes(data: bytes, rng: random.Random, first: int = 0, last: int | None = None) -> tuple[bytes, str]:
    """Other bytes, and in words what was done, between the places ``first`` and ``last``."""
    name = rng.choice(list(_CHANGES))
    place = rng.randrange(first, max(first + 1, min(len(data), last or len(data))))
    return _CHANGES[name](data, place, rng), f"{name} at {place} of {len(data)}"


def damage_file(path: pathlib.Path, rng: random.Random) -> str:
    """Damage a file's bytes, or put something else in its place."""
    if rng.random() < 0.15:
        name = rng.choice(list(_REPLACED))
        path.unlink()
        _REPLACED[name](path)
        return f"{path.name}: {name}"
    data, reported = damage_bytes(path.read_bytes(), rng)
    path.write_bytes(data)
    return f"{path.name}: {reported}"


def _flip(data: bytes, place: int, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice([1, 2, 8])):
        if changed:
            changed[min(len(changed) - 1, place + rng.randrange(16))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _overwrite(data: bytes, place: int, rng: random.Random) -> bytes:
    """Lengths and counts are numbers of 2, 4 or 8 bytes: the largest, the smallest, none."""
    size = rng.choice([1, 2, 4, 8])
    new = rng.choice([b"\xff", b"\0", b"\x7f", b"\x80"]) * size
    return data[:place] + new + data[place + size :]


def _insert(data: bytes, place: int, rng: random.Random) -> bytes:
    return data[:place] + rng.randbytes(rng.choice([1, 8, 64])) + data[place:]


def _repeat(data: bytes, place: int, rng: random.Random) -> bytes:
    return data[:place] + data[max(0, place - rng.randrange(1, 64)) :]


_CHANGES: dict[str, Callable[[bytes, int, random.Random], bytes]] = {
    "flipped": _flip,
    "overwritten": _overwrite,
    "inserted": _insert,
    "removed": lambda data, place, rng: data[:place] + data[place + rng.choice([1, 4, 8, 100]) :],
    "repeated": _repeat,
    "cut": lambda data, place, rng: data[:place],
    "extended": lambda data, place, rng: data + rng.randbytes(rng.choice([1, 8, 4096])),
    "replaced": lambda data, place, rng: rng.choice(_FOREIGN),
}
_REPLACED: dict[str, Callable[[pathlib.Path], None]] = {
    "is missing": lambda path: None,
    "is a folder": lambda path: path.mkdir(),
    "is a pipe": lambda path: os.mkfifo(path),
    "is a link out": lambda path: path.symlink_to("/etc/passwd"),
    "is a link to itself": lambda path: path.symlink_to(path.name),
    "is a device": lambda path: path.symlink_to("/dev/zero"),
}
