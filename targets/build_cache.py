"""What moec has compiled, kept in the user's cache by what it was made of: kernels, and programs that check its output.

A file lies in ``$XDG_CACHE_HOME/moec/<kind>`` (by default ``~/.cache``) under a name that changes with whatever its
contents depend on. It gets the name when it is complete, so that processes may make the same file at the same time.
What is in the cache gets executed: folders that others than the user may write to, links and files of others are not
used. Of each kind the files that were not asked for the longest are forgotten; who has one open keeps it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from typing import BinaryIO

from moec.common.seals import sealed, unsealed
from moec.common.user_cache import user_cache
from moec.errors import MoecError

KERNELS = "kernels"
LIMITS = {KERNELS: 256 << 20, "emulator": 1 << 30, "hls": 1 << 30}
"""The bytes that are kept of each kind."""

_NAME = re.compile(r"(?P<unfinished>[0-9a-f]{12}-)?[0-9a-f]{24,64}(\.[a-z]+)*")
"""What moec calls its files. Nothing else in the folders is counted or removed."""
_COMMENT = "# "
_ABANDONED_S = 3600
"""How old an unfinished file is whose writer must have died."""
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


@dataclasses.dataclass(frozen=True)
class Usage:
    """What is kept of a kind. ``refused``: why nothing is read or kept there, if so."""

    kind: str
    folder: str
    entries: int
    bytes: int
    limit: int
    refused: str | None = None


def cached(kind: str, name: str, make: Callable[[pathlib.Path], None]) -> pathlib.Path:
    """The file of that kind and name, made where it is not there yet. ``make`` is called with the path to write.

    Raises MoecError where the cache cannot be written, and what ``make`` raises.
    """
    try:
        path = user_cache() / kind / name
        with _opened(kind, create=True) as folder:
            if _is_own_file(folder, name):
                os.utime(name, dir_fd=folder)  # it was asked for now
                return path
            aside = _aside(name)
            try:
                make(path.with_name(aside))
                os.replace(aside, name, src_dir_fd=folder, dst_dir_fd=folder)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(aside, dir_fd=folder)
            _forget_oldest(folder, LIMITS[kind])
            return path
    except OSError as error:
        raise MoecError(f"the cache cannot be written: {_reason(error)}; set XDG_CACHE_HOME") from error


def recall(kind: str, name: str) -> bytes | None:
    """What was kept under a name; None where nothing was, where it was damaged, and where it cannot be read."""
    try:
        with _opened(kind) as folder, _opened_file(folder, name) as file:
            os.utime(file.fileno())  # it was asked for now
            content = unsealed(file.read(LIMITS[kind]), _COMMENT)
    except OSError:
        return None
    mark = _mark(name)
    return content[len(mark) : -1] if content is not None and content.startswith(mark) else None


def keep(kind: str, entries: Mapping[str, bytes]) -> None:
    """Keep contents by name, for :func:`recall`. Where they cannot be kept (no space, no rights) nothing happens."""
    with contextlib.suppress(OSError), _opened(kind, create=True) as folder:
        for name, content in entries.items():
            _write(folder, name, sealed(_mark(name) + content + b"\n", _COMMENT))
        _forget_oldest(folder, LIMITS[kind])


def usage() -> list[Usage]:
    """What the cache holds, kind by kind."""
    return [_usage(kind, limit) for kind, limit in LIMITS.items()]


def clear() -> int:
    """Remove what moec has kept, and nothing else; returns how many files. Raises MoecError where that is not possible.

    Measurements of ``moec tune`` stay: they are no copies of what can be made again.
    """
    removed = 0
    for kind in LIMITS:
        try:
            with _opened(kind) as folder:
                for name, _status in _own_files(folder):
                    with contextlib.suppress(FileNotFoundError):  # another process removed it
                        os.unlink(name, dir_fd=folder)
                        removed += 1
        except FileNotFoundError:
            continue
        except OSError as error:
            raise MoecError(f"the cache of {kind} cannot be cleared: {_reason(error)}") from error
    return removed


@contextlib.contextmanager
def _opened(kind: str, *, create: bool = False) -> Iterator[int]:
    """The folder of a kind, as a file descriptor. Raises OSError where it is not the user's alone."""
    place = user_cache()
    if create:
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = os.open(place.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for path in (place, place / kind):
            folder = _inside(folder, path, create)
        yield folder
    finally:
        os.close(folder)


def _inside(parent: int, path: pathlib.Path, create: bool) -> int:
    """A folder in an open one, which is closed unless an error is raised."""
    if create:
        with contextlib.suppress(FileExistsError):
            os.mkdir(path.name, 0o700, dir_fd=parent)
    folder = os.open(path.name, _FOLDER, dir_fd=parent)
    status = os.fstat(folder)
    if status.st_uid != os.geteuid() or status.st_mode & _OTHERS_WRITE:
        os.close(folder)
        raise PermissionError(f"{path} is of another user, or others may write to it: chmod 700")
    os.close(parent)
    return folder


def _own_files(folder: int) -> Iterator[tuple[str, os.stat_result]]:
    """The files that moec wrote."""
    for name in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):  # another process removed it
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if _NAME.fullmatch(name) and _is_own(status):
                yield name, status


def _is_own_file(folder: int, name: str) -> bool:
    try:
        return _is_own(os.stat(name, dir_fd=folder, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _is_own(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()


@contextlib.contextmanager
def _opened_file(folder: int, name: str) -> Iterator[BinaryIO]:
    file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    with open(file, "rb") as opened:
        if not _is_own(os.fstat(file)):
            raise PermissionError(f"{name} is no file of the user")
        yield opened


def _write(folder: int, name: str, content: bytes) -> None:
    aside = _aside(name)
    try:
        file = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=folder)
        with open(file, "wb") as opened:
            opened.write(content)
        os.replace(aside, name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(aside, dir_fd=folder)
        raise


def _aside(name: str) -> str:
    return f"{secrets.token_hex(6)}-{name}"


def _mark(name: str) -> bytes:
    """What a content begins with: so that a file under another's name is noticed."""
    return f"{name}\n".encode()


def _forget_oldest(folder: int, limit: int) -> None:
    kept, now = 0, time.time()
    for name, status in sorted(_own_files(folder), key=lambda one: one[1].st_mtime_ns, reverse=True):
        kept += status.st_size
        match = _NAME.fullmatch(name)
        abandoned = match is not None and match["unfinished"] and now - status.st_mtime > _ABANDONED_S
        if kept > limit or abandoned:
            with contextlib.suppress(FileNotFoundError):  # another process removed it
                os.unlink(name, dir_fd=folder)


def _usage(kind: str, limit: int) -> Usage:
    where, files, refused = "", [], None
    try:
        where = str(user_cache() / kind)
        with _opened(kind) as folder:
            files = [status.st_size for _name, status in _own_files(folder)]
    except FileNotFoundError:
        pass  # nothing was kept so far
    except OSError as error:
        refused = _reason(error)
    return Usage(kind, where, len(files), sum(files), limit, refused)


def _reason(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}"
