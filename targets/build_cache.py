"""The cache of compiled files in the user's cache folder: kernels, and programs that check moec's output.

A file lies in ``$XDG_CACHE_HOME/moec/<kind>`` (by default ``~/.cache``). Its name is derived from everything that its
contents depend on. It gets that name only when it is complete, so several processes may make the same file at once.

Cached files are executed. The cache therefore never uses a link, a file of another user, or a folder that others may
write to. When a kind exceeds its limit, its least recently used files are deleted; a process that has one open keeps
it.
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

from moec.common.errors import MoecError
from moec.common.seals import sealed, unsealed
from moec.common.user_cache import user_cache

KERNELS = "kernels"
LIMITS = {KERNELS: 256 << 20, "emulator": 1 << 30, "hls": 1 << 30}
"""The largest size of each kind, in bytes."""

_NAME = re.compile(r"(?P<unfinished>[0-9a-f]{12}-)?[0-9a-f]{24,64}(\.[a-z]+)*")
"""Names of moec's files. Other files in the folders are neither counted nor removed."""
_COMMENT = "# "
_ABANDONED_S = 3600
"""The age at which an unfinished file counts as abandoned by its writer."""
_RARELY = 64
"""A part of a kind's limit: its files are counted once that much is new. To count thousands takes 20 ms and more."""
_new_bytes: dict[pathlib.Path, int] = {}
"""Bytes that this process kept in a folder since it counted the files there; a folder is absent before."""
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


@dataclasses.dataclass(frozen=True)
class Usage:
    """The cache's files of one kind: their number and bytes. ``refused``: why this folder is not used, if it is not."""

    kind: str
    folder: str
    entries: int
    bytes: int
    limit: int
    refused: str | None = None


def cached(kind: str, name: str, make: Callable[[pathlib.Path], None]) -> pathlib.Path:
    """The file of that kind and name. If it does not exist, ``make`` is called with the path that it has to write.

    Raises MoecError if the cache cannot be written, and what ``make`` raises.
    """
    try:
        path = user_cache() / kind / name
        with _opened(kind, create=True) as folder:
            if _is_own_file(folder, name):
                os.utime(name, dir_fd=folder)  # mark it as recently used
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
    """The content that :func:`keep` stored under a name; None if there is none, or if it is damaged or unreadable."""
    try:
        with _opened(kind) as folder, _opened_file(folder, name) as file:
            os.utime(file.fileno())  # mark it as recently used
            content = unsealed(file.read(LIMITS[kind]), _COMMENT)
    except OSError:
        return None
    mark = _mark(name)
    return content[len(mark) : -1] if content is not None and content.startswith(mark) else None


def keep(kind: str, entries: Mapping[str, bytes]) -> None:
    """Store contents by name, for :func:`recall`. Failures (no space, no permission) are ignored. Files of the kind are
    counted at the process's first call, and then each time that a 64th of the limit is new."""
    with contextlib.suppress(OSError), _opened(kind, create=True) as folder:
        files = {name: sealed(_mark(name) + content + b"\n", _COMMENT) for name, content in entries.items()}
        for name, file in files.items():
            _write(folder, name, file)
        place, limit = user_cache() / kind, LIMITS[kind]
        new = _new_bytes.get(place, limit) + sum(map(len, files.values()))
        if new * _RARELY > limit:
            _forget_oldest(folder, limit)
            new = 0
        _new_bytes[place] = new


def usage() -> list[Usage]:
    """The cache's files and bytes, kind by kind."""
    return [_usage(kind, limit) for kind, limit in LIMITS.items()]


def clear() -> int:
    """Remove moec's files, and no others, from the cache; return their number. Raises MoecError if that fails.

    Measurements of ``moec tune`` stay, since they cannot be made again from other files.
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
    """The folder of a kind, as a file descriptor. Raises OSError if others than the user may write to it."""
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
    """Open a folder inside the open folder ``parent``, and close ``parent`` unless an error is raised."""
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
    """Names and status of the files in a folder that moec wrote."""
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
            raise PermissionError(f"{name} is not a file of the user")
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
    """The header of a file's content: its name, which reveals a file that was stored or moved under another name."""
    return f"{name}\n".encode()


def _forget_oldest(folder: int, limit: int) -> None:
    kept, now = 0, time.time()
    for name, status in sorted(_own_files(folder), key=lambda file: file[1].st_mtime_ns, reverse=True):
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
