"""Check that a file or folder is an artifact as moec wrote it, so that it may be replaced."""

from __future__ import annotations

import os
import pathlib
import stat

from moec.common import seals
from moec.runtime.artifact import checksum
from moec.runtime.manifest import MANIFEST, WEIGHTS, FileEntry
from moec.runtime.read_manifest import listed_files


def foreign_artifact(path: pathlib.Path) -> str | None:
    """Explain why a file or folder is not an artifact as moec wrote it, of this or another format version. Returns None
    where it is one.

    A folder has to hold a manifest of moec and nothing that it does not list; files may be missing. Only the size of
    ``weights.bin`` is compared, of other files also the checksum. Raises OSError.
    """
    if not path.is_dir():
        why = seals.foreign_file(path)
        return None if why is None else f"{why}, not an artifact"
    files = _listed(path)
    if files is None:
        return "is a folder that holds something else than an artifact"
    folders = {parent.as_posix() for name in files for parent in pathlib.PurePath(name).parents}
    for root, names_of_folders, names in os.walk(path, onerror=_raise):
        for inside in (*names_of_folders, *names):
            entry = pathlib.Path(root, inside)
            name = entry.relative_to(path).as_posix()
            mode = entry.lstat().st_mode
            if name == MANIFEST or (name in folders and stat.S_ISDIR(mode)):
                continue
            if name not in files or not stat.S_ISREG(mode):
                return f"is an artifact with {name} in it, which moec did not write"
            if not _is_unchanged(entry, name, files[name]):
                return f"is an artifact whose {name} was changed since moec wrote it"
    return None


def _listed(folder: pathlib.Path) -> dict[str, FileEntry] | None:
    manifest = folder / MANIFEST
    if manifest.is_symlink() or not manifest.is_file():
        return None
    return listed_files(manifest.read_bytes())


def _is_unchanged(path: pathlib.Path, name: str, expected: FileEntry) -> bool:
    return path.stat().st_size == expected.bytes and (name == WEIGHTS or checksum(path) == expected)


def _raise(error: OSError) -> None:
    raise error
