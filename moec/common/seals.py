"""Seals, by which moec recognises files that it wrote: the last line is the SHA-256 of everything above it.

A text has it as a comment, a zip as the comment of the archive. A seal shows that a file is moec's own and unchanged,
so that it may be replaced; it is no signature, because anybody can make one.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import zipfile
from collections.abc import Callable

from moec.common.replacing import replacing

_MARK = b"sealed by moec "
_LENGTH = len(_MARK) + 2 * hashlib.sha256().digest_size + 1
_CHUNK = 1 << 20


def write_sealed(path: str | os.PathLike[str], content: bytes, comment: str) -> None:
    """Write a file with a seal after ``content``, on a line that begins with ``comment``. An unchanged file of moec
    (:func:`foreign_file`) is replaced. Raises MoecError."""
    with replacing(path, foreign_file) as aside:
        aside.write_bytes(sealed(content, comment))


def sealed(content: bytes, comment: str) -> bytes:
    """Append a seal to ``content``, on a line of its own that begins with ``comment``."""
    above = content + (b"" if content.endswith(b"\n") else b"\n") + comment.encode()
    return above + _seal(hashlib.sha256(above))


def unsealed(data: bytes, comment: str) -> bytes | None:
    """Remove the seal of :func:`sealed`, but not a newline that it added. Returns None for other or damaged data."""
    above, seal = data[:-_LENGTH], data[-_LENGTH:]
    if seal != _seal(hashlib.sha256(above)) or not above.endswith(comment.encode()):
        return None
    return above[: len(above) - len(comment.encode())]


def append_seal(path: pathlib.Path, before: Callable[[int], bytes]) -> None:
    """Append ``before(length)`` and a seal of ``length`` bytes to a complete file, whose format takes both at its
    end."""
    with path.open("ab") as file:
        file.write(before(_LENGTH) + bytes(_LENGTH))
    _fill_seal(path)


def seal_zip(path: pathlib.Path) -> None:
    """Give a complete zip a seal."""
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = bytes(_LENGTH)  # the archive's end holds the length of its comment
    _fill_seal(path)


def _fill_seal(path: pathlib.Path) -> None:
    """Overwrite the end of a file by the seal of what is above."""
    digest = _digest_above(path)
    with path.open("r+b") as file:
        file.seek(-_LENGTH, os.SEEK_END)
        file.write(_seal(digest))


def foreign_file(path: pathlib.Path) -> str | None:
    """Explain why a file or folder is not an unchanged file of moec. Returns None where it is one. Reads all of it.
    Raises OSError."""
    if path.is_dir():
        return "is a folder, not a file"
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - _LENGTH, 0))
        end = file.read()
    if not end.startswith(_MARK):
        return "is a file that moec did not write"
    return None if end == _seal(_digest_above(path)) else "is a file that was changed since moec wrote it"


def _seal(digest: hashlib._Hash) -> bytes:
    return _MARK + digest.hexdigest().encode() + b"\n"


def _digest_above(path: pathlib.Path) -> hashlib._Hash:
    return digest_of(path, path.stat().st_size - _LENGTH)


def digest_of(path: pathlib.Path, length: int) -> hashlib._Hash:
    """The SHA-256 of the first ``length`` bytes of a file. Raises OSError."""
    digest, left = hashlib.sha256(), length
    with path.open("rb") as file:
        while chunk := file.read(min(_CHUNK, left)):
            digest.update(chunk)
            left -= len(chunk)
    return digest
