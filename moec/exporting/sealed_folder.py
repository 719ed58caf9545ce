"""Folders that moec recognises as its own: a sealed list of their files, each with its SHA-256."""

from __future__ import annotations

import pathlib

from moec.common.seals import digest_of, sealed, unsealed

LIST = "moec-files.txt"
_COMMENT = "# "


def seal_folder(folder: pathlib.Path) -> None:
    """Write the list of all files of a complete folder into it."""
    (folder / LIST).write_bytes(sealed(_listed(folder).encode(), _COMMENT))


def foreign_folder(folder: pathlib.Path) -> str | None:
    """Explain why a folder is not an unchanged folder of moec. Returns None where it is one. Reads all of it. Raises
    OSError."""
    if not folder.is_dir():
        return "is a file, not a folder"
    listed = folder / LIST
    content = unsealed(listed.read_bytes(), _COMMENT) if listed.is_file() else None
    if content is None:
        return "is a folder that moec did not write"
    return None if content == _listed(folder).encode() else "is a folder that was changed since moec wrote it"


def _listed(folder: pathlib.Path) -> str:
    files = sorted(path for path in folder.rglob("*") if not path.is_dir() and path != folder / LIST)
    return "".join(
        f"{digest_of(path, path.stat().st_size).hexdigest()}  {path.relative_to(folder).as_posix()}\n" for path in files
    )
