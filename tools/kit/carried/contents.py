"""The contents of the kit, packed into one file until the first call."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pathlib
import shutil
import sys
import zipfile

PACKED = "contents.zip"
_CHECKSUM = "contents.sha256"
"""The packed file's checksum, as ``sha256sum --check`` reads it; the unpacked folder has a copy."""


def write_checksum(packed: pathlib.Path) -> None:
    """Write the checksum beside the packed file."""
    packed.with_name(_CHECKSUM).write_text(_checksum(packed), encoding="utf-8")


def _checksum(packed: pathlib.Path) -> str:
    return f"{hashlib.sha256(packed.read_bytes()).hexdigest()}  {packed.name}\n"


def unpacked(here: pathlib.Path, work: pathlib.Path) -> pathlib.Path:
    """The folder of the contents, which the first call unpacks into ``work``; one call at a time. Raises ValueError
    for a Python that cannot run the kit, for a damaged kit, and for a folder with anything else, OSError where nothing
    can be written."""
    packed, folder, part = here / PACKED, work / "contents", work / "contents.part"
    _check_python()
    checksum = _checksum(packed)
    if (here / _CHECKSUM).read_text(encoding="utf-8") != checksum:
        raise ValueError(f"{packed}: damaged; copy the kit again")
    if not folder.exists():
        _unpack(packed, part, checksum)
        os.replace(part, folder)
    present = folder / _CHECKSUM
    if not present.exists() or present.read_text(encoding="utf-8") != checksum:
        raise ValueError(f"{folder}: not the contents of this kit; remove it or choose another folder by --work DIR")
    return folder


def _check_python() -> None:
    """Raise ValueError for a Python that lacks what the kit needs."""
    for module, what in (("numpy", "numpy"), ("_lzma", "the module lzma")):
        if importlib.util.find_spec(module) is None:
            raise ValueError(f"{sys.executable}: has no {what}; install it, or set PYTHON to a Python that has it")


def _unpack(packed: pathlib.Path, part: pathlib.Path, checksum: str) -> None:
    """Unpack into ``part``, which an interrupted call may have left, with the checksum."""
    shutil.rmtree(part, ignore_errors=True)
    try:
        with zipfile.ZipFile(packed) as archive:
            archive.extractall(part)
        (part / _CHECKSUM).write_text(checksum, encoding="utf-8")
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
