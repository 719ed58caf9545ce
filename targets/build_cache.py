"""Programs that moec compiles to check its own output, kept in the user's cache by what they are made of."""

from __future__ import annotations

import contextlib
import os
import pathlib
import secrets
from collections.abc import Callable

from moec.errors import MoecError

_MOST_BYTES = 1 << 30
"""That are kept of a kind."""


def cached(kind: str, name: str, make: Callable[[pathlib.Path], None]) -> pathlib.Path:
    """The file ``name`` of ``$XDG_CACHE_HOME/moec/kind`` (by default ``~/.cache``), made where it is not there yet.

    ``name`` has to change with whatever the contents depend on. ``make`` is called with the path that it has to write;
    the file gets its name when it is complete, so that processes may make the same file at the same time. The files
    that were not asked for the longest are forgotten; who has one open keeps it.

    Raises MoecError where the cache cannot be written, and what ``make`` raises.
    """
    path = _folder(kind) / name
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        os.utime(path)  # it was asked for now
        return path
    aside = path.with_name(f"{secrets.token_hex(6)}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        make(aside)
        aside.replace(path)
    except OSError as error:
        raise MoecError(f"{path}: cannot be written: {error.strerror or error}; set XDG_CACHE_HOME") from error
    finally:
        with contextlib.suppress(NotADirectoryError):
            aside.unlink(missing_ok=True)
    _forget_oldest(path.parent)
    return path


def _folder(kind: str) -> pathlib.Path:
    cache = os.environ.get("XDG_CACHE_HOME")
    folder = pathlib.Path(cache) if cache and os.path.isabs(cache) else pathlib.Path.home() / ".cache"
    return folder / "moec" / kind


def _forget_oldest(folder: pathlib.Path) -> None:
    with contextlib.suppress(FileNotFoundError):  # another process removes them too
        files = sorted(folder.iterdir(), key=lambda file: file.stat().st_mtime_ns, reverse=True)
        kept = 0
        for file in files:
            kept += file.stat().st_size
            if kept > _MOST_BYTES:
                file.unlink()
