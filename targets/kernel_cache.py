"""The cache of generated code, which saves generating the same code again.

An entry's key is a hash of everything that the code depends on: its text before the phases that generate code, and the
versions of these phases, of TVM and of LLVM. Entries are sealed when they are written. If an entry or the folder is
damaged, the code is generated as if there were no cache. ``MOEC_KERNEL_CACHE=off`` turns the cache off.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import io
import json
import os
import pathlib
import zipfile
from collections.abc import Callable, Mapping

from moec import common, targets
from moec.common.errors import MoecError
from moec.common.version import VERSION
from moec.targets.build_cache import KERNELS, keep, recall

VARIABLE = "MOEC_KERNEL_CACHE"
_USED = {"on": True, "off": False}

Files = dict[str, bytes]
"""The files generated from one source, by form: an object file, texts."""


def through_cache(made_of: Mapping[str, str], make: Callable[[str], Files]) -> dict[str, Files]:
    """The files of each name, taken from the cache or else made by ``make(name)``.

    ``made_of``: by name, all that its files depend on, except versions.
    Raises what ``make`` raises, and MoecError if the environment variable is neither ``on`` nor ``off``.
    """
    if not cache_is_used():
        return {name: make(name) for name in made_of}
    keys = {name: _key(text) for name, text in made_of.items()}
    cached = {name: _unpacked(recall(KERNELS, key)) for name, key in keys.items()}
    missing = {name: make(name) for name, files in cached.items() if files is None}
    if missing:
        keep(KERNELS, {keys[name]: _packed(files) for name, files in missing.items()})
    return {name: missing[name] if files is None else files for name, files in cached.items()}


def cache_is_used() -> bool:
    """Whether the environment turns the cache on, which is the default. Raises MoecError for a value other than ``on``
    and ``off``."""
    asked = os.environ.get(VARIABLE, "on")
    if asked not in _USED:
        raise MoecError(f"the environment's variable {VARIABLE} is {asked!r}; expected one of {', '.join(_USED)}")
    return _USED[asked]


def _key(text: str) -> str:
    return hashlib.sha256(f"{_versions()}\0{text}".encode()).hexdigest()


@functools.cache
def _versions() -> str:
    """The versions of all that generates code. moec's own part is identified by a hash of its source, which changes
    more often than its version."""
    from tvm.target import codegen

    digest = hashlib.sha256()
    for folder in map(pathlib.Path, [*targets.__path__, *common.__path__]):
        for path in sorted(folder.rglob("*.py")):
            digest.update(f"{path.relative_to(folder).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    packages = [importlib.metadata.version(name) for name in ("apache-tvm", "apache-tvm-ffi")]
    return json.dumps([VERSION, *packages, str(codegen.llvm_version_major()), digest.hexdigest()])


def _packed(files: Files) -> bytes:
    """The files as a zip archive with fixed time stamps, compressed at the fastest level."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for form, content in files.items():
            archive.writestr(zipfile.ZipInfo(form), content, zipfile.ZIP_DEFLATED)
    return packed.getvalue()


def _unpacked(content: bytes | None) -> Files | None:
    if content is None:
        return None
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {form: archive.read(form) for form in archive.namelist()}
