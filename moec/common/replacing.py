"""Replacement of moec's own files and folders, and of nothing else, in one step.

A new file or folder is made in a folder next to its place and then exchanged with the old one. A reader sees one of the
two, complete, at every moment; of two simultaneous writers the later one wins. The old one is removed only if it is
empty or recognised as moec's own and unchanged; devices, pipes and sockets are refused. A symlink is followed: its
target is replaced, and the link stays.

The folder next to it, ``.moec-unfinished-<random>``, is locked as long as its writer lives. The next write into the
same folder removes those of dead writers.

Where the system or the file system has no exchange (renameat2 exists on Linux), the old one is moved aside and the new
one into its place. A reader may then see none in between. After a kill at that moment the old one is in the unfinished
folder, under ``replaced``, and that folder is not removed. Where folders cannot be locked, none is ever removed.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import pathlib
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator

from moec.common.errors import MoecError

ForeignBecause = Callable[[pathlib.Path], str | None]
"""Function that explains why a file or folder, neither special nor empty, must not be replaced, as in "is a file, not
an artifact"; None where moec may replace it. May raise OSError."""

_UNFINISHED = ".moec-unfinished-"
_UNFINISHED_NAME = re.compile(re.escape(_UNFINISHED) + "[0-9a-f]{16}")
_CONTENT, _REPLACED = "content", "replaced"
COMPANION_NAME = re.compile(r".+\.([0-9a-f]{16})\.data")
"""The name of a companion, with its digest."""
_NO_REPLACE, _EXCHANGE = 1, 2
_HERE = -100  # AT_FDCWD
_NOT_THERE = frozenset({errno.ENOSYS, errno.EINVAL, errno.ENOTSUP})
_unfinished: set[pathlib.Path] = set()
_SPECIAL = {stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


@contextlib.contextmanager
def replacing(
    path: str | os.PathLike[str], foreign_because: ForeignBecause, kind: type[MoecError] = MoecError
) -> Iterator[pathlib.Path]:
    """Context with a path for a new file or folder, which takes the place of ``path`` when the block ends without an
    error. After an error it is removed, with everything next to it whose name begins with its own, and with companions
    (:mod:`moec.common.companions`).

    Raises an error of ``kind`` where something exists that is not moec's own, or the file system refuses (a full disk,
    no rights); then that is unharmed and nothing is left behind.
    """
    place = check_replaceable(path, foreign_because, kind)
    try:
        with _unfinished_folder(place.parent) as folder:
            yield folder / _CONTENT
            _publish(folder, place, foreign_because, kind)
    except OSError as error:
        raise kind(f"{path}: was not written: {error.strerror or error}") from error


def check_replaceable(
    path: str | os.PathLike[str], foreign_because: ForeignBecause, kind: type[MoecError] = MoecError
) -> pathlib.Path:
    """Resolve ``path``, following symlinks. Raises as :func:`replacing` where something there must not be replaced or
    nothing can be written."""
    place = pathlib.Path(os.path.realpath(path))
    try:
        special = _special(pathlib.Path(path))  # before links are followed, because /dev/stdout leads to no path
        if special:
            raise kind(f"{path}: is {special}; moec writes files and folders only: choose another path")
        if not place.parent.is_dir():
            raise kind(f"{path}: the folder {place.parent} does not exist; create it first")
        if not os.access(place.parent, os.W_OK):
            raise kind(f"{path}: the folder {place.parent} is read-only; choose another path")
        _refuse(place, _obstacle(place, foreign_because), kind)
    except OSError as error:
        raise kind(f"{path}: cannot be written to: {error.strerror or error}") from error
    return place


def _refuse(place: pathlib.Path, obstacle: str | None, kind: type[MoecError]) -> None:
    if obstacle is not None:
        raise kind(f"{place}: {obstacle}; remove it or choose another path")


def _obstacle(place: pathlib.Path, foreign_because: ForeignBecause) -> str | None:
    """Explain why something at a place must not be replaced. Returns None where it may, or nothing is there. What
    another writer puts there meanwhile is looked at again: the files that were read may be of both."""
    while (seen := _identity(place)) is not None:
        try:
            obstacle = _look(place, foreign_because)
        except FileNotFoundError:
            if _identity(place) == seen:
                raise
            continue
        if obstacle is None or _identity(place) == seen:
            return obstacle
    return None


def _identity(place: pathlib.Path) -> tuple[int, int, int] | None:
    try:
        status = place.lstat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino, status.st_ctime_ns


def _look(place: pathlib.Path, foreign_because: ForeignBecause) -> str | None:
    special = _special(place)
    if special:
        return f"is {special}"
    if not os.access(place, os.W_OK):
        return "is write-protected"
    return None if _is_empty(place) else foreign_because(place)


def _special(path: pathlib.Path) -> str | None:
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    return None if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else _SPECIAL.get(stat.S_IFMT(mode), "a special file")


def _is_empty(place: pathlib.Path) -> bool:
    return not any(place.iterdir()) if place.is_dir() else place.stat().st_size == 0


@contextlib.contextmanager
def _unfinished_folder(parent: pathlib.Path) -> Iterator[pathlib.Path]:
    """Context with a new folder, locked while it is in use, and removed afterwards unless something was kept in it."""
    _sweep(parent)
    folder, lock = _locked_folder(parent)
    _unfinished.add(folder)
    try:
        yield folder
    finally:
        _remove(folder)
        _unfinished.discard(folder)
        os.close(lock)


def abandon_unfinished() -> None:
    """Remove this process' unfinished files, before it exits immediately. A writer that still runs adds nothing to
    them: their folder has another name before it is emptied."""
    for folder in list(_unfinished):
        with contextlib.suppress(OSError):
            _remove(folder.rename(_unfinished_path(folder.parent)))


def _remove(folder: pathlib.Path) -> None:
    with contextlib.suppress(OSError):
        for content in folder.iterdir():
            if not (content.name.startswith(_CONTENT) or COMPANION_NAME.fullmatch(content.name)):
                continue
            shutil.rmtree(content, ignore_errors=True) if content.is_dir() else content.unlink(missing_ok=True)
        folder.rmdir()


def _unfinished_path(parent: pathlib.Path) -> pathlib.Path:
    return parent / f"{_UNFINISHED}{secrets.token_hex(8)}"


def _locked_folder(parent: pathlib.Path) -> tuple[pathlib.Path, int]:
    while True:
        folder = _unfinished_path(parent)
        folder.mkdir()
        with contextlib.suppress(FileNotFoundError):  # another writer swept it before it was locked
            lock = os.open(folder, os.O_RDONLY)
            with contextlib.suppress(OSError):  # a file system without locks
                _lock(lock, wait=True)
            if folder.exists():
                return folder, lock
            os.close(lock)


def _sweep(parent: pathlib.Path) -> None:
    """Remove the folders of writers that were killed."""
    for name in os.listdir(parent):
        if not _UNFINISHED_NAME.fullmatch(name):
            continue
        with contextlib.suppress(OSError):  # its writer lives, another one sweeps it, or it is another user's
            lock = os.open(parent / name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                _lock(lock, wait=False)
                _remove(parent / name)
            finally:
                os.close(lock)


def _lock(descriptor: int, *, wait: bool) -> None:
    import fcntl  # only POSIX systems have it, and reading an artifact does not need it

    fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def _publish(folder: pathlib.Path, place: pathlib.Path, foreign_because: ForeignBecause, kind: type[MoecError]) -> None:
    new, kept = folder / _CONTENT, folder / _REPLACED
    while True:
        if not os.path.lexists(place):
            with contextlib.suppress(FileExistsError):  # another writer was faster
                move(new, place)
                return
        _refuse(place, _obstacle(place, foreign_because), kind)
        try:
            old = _exchange(new, place, kept)
        except FileNotFoundError:
            if not new.exists():
                raise
            continue  # the old one is gone
        obstacle = _obstacle(old, foreign_because)  # something may have appeared in the meantime
        if obstacle is None:
            _rename(old, new)
            return
        _rename(old, kept)  # nobody removes it there
        _rename(_exchange(kept, place, new), new)
        _refuse(place, obstacle, kind)


def _rename(source: pathlib.Path, target: pathlib.Path) -> None:
    if source != target:
        source.rename(target)


def move(new: pathlib.Path, place: pathlib.Path) -> None:
    """Move a file or folder to a place where nothing is. Raises FileExistsError."""
    if not _renamed(new, place, _NO_REPLACE):
        new.rename(place)


def _exchange(new: pathlib.Path, place: pathlib.Path, aside: pathlib.Path) -> pathlib.Path:
    """Exchange ``new`` with the file at ``place``. Returns the path of the old one."""
    if _renamed(new, place, _EXCHANGE):
        return new
    place.rename(aside)
    try:
        new.rename(place)
    except OSError:
        aside.rename(place)
        raise
    return aside


def _renamed(source: pathlib.Path, target: pathlib.Path, how: int) -> bool:
    """Rename in a certain way. Returns whether the system can do that. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    if libc.renameat2(_HERE, os.fsencode(source), _HERE, os.fsencode(target), how) == 0:
        return True
    number = ctypes.get_errno()
    if number in _NOT_THERE:
        return False
    raise OSError(number, os.strerror(number), str(target))
