"""Crossovers that ``moec tune`` measured on this machine: for each kernel shape, the number of rows from which its
second way is faster.

Kernels with two ways to compute (dot instructions for few rows, matrix tiles for many) read the crossover from a
weight, an int32 that the artifact lists with them. On a GPU the host reads it, and it counts tokens. The artifact holds
an estimate; values measured on this machine replace it when an artifact is loaded. They are in a file of the user's
cache, one for each kind of processor and each kind of GPU, which several processes may read and write at once: writers
take turns by a lock, and a file is complete before it gets its name.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import platform
import secrets
from collections.abc import Mapping
from typing import Annotated, TypedDict

from moec.common.errors import MoecError
from moec.common.plain_files import read_bytes
from moec.common.records import FieldRule, read_json
from moec.common.user_cache import user_cache
from moec.runtime.machine import cpu_features, cpu_name

ALWAYS, NEVER = 1, 2**31 - 1
"""Crossovers at which every number of rows, and none, takes the second way."""
_LARGEST = 16 << 20


_Rows = Annotated[int, FieldRule(lambda rows: ALWAYS <= rows <= NEVER, f"a number of rows from {ALWAYS} to {NEVER}")]


class _TuningFile(TypedDict):
    crossovers: dict[str, _Rows]


def tuning_file(gpu: str | None = None) -> pathlib.Path:
    """Path of the values for this kind of processor, or for that GPU, in the user's cache. Raises OSError."""
    processor = json.dumps([gpu] if gpu else [platform.machine(), cpu_name(), sorted(cpu_features())])
    return user_cache() / "tuning" / f"{hashlib.sha256(processor.encode()).hexdigest()[:16]}.json"


def read_tuned(gpu: str | None = None) -> dict[str, int]:
    """Read the measured crossovers, by name; empty where there are none. Raises MoecError for a damaged file."""
    try:
        path = tuning_file(gpu)
    except OSError:
        return {}  # there is no home folder
    if not path.exists():
        return {}
    text = read_bytes(path, _LARGEST)
    return read_json(_TuningFile, text, str(path), "remove it, and run moec tune again")["crossovers"]


def store_tuned(values: Mapping[str, int], gpu: str | None = None) -> pathlib.Path:
    """Add measured crossovers, and return the file. Raises MoecError when it cannot be written."""
    import filelock

    path = tuning_file(gpu)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        path.parent.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with filelock.FileLock(path.with_suffix(".lock")):
            measured = {"gpu": gpu} if gpu else {"cpu": cpu_name()}
            content = {**measured, "crossovers": {**read_tuned(gpu), **values}}
            try:
                aside.write_text(json.dumps(content, indent=1, sort_keys=True), encoding="utf-8")
                aside.replace(path)
            finally:
                aside.unlink(missing_ok=True)
    except OSError as error:
        raise MoecError(f"{path}: cannot be written: {error.strerror or error}; set XDG_CACHE_HOME") from error
    return path
