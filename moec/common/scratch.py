"""Temporary folders that do not outlive a killed process for long.

A killed process leaves its folders behind. They are in the system's temporary folder under a recognisable name, and
locked as long as their process lives: the next process that needs one removes those that nobody locks.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import shutil
import tempfile
import weakref

from moec.common.errors import MoecError, one_line
from moec.common.replacing import abandon_unfinished

_PREFIX = "moec-scratch-"
_NAME = re.compile(re.escape(_PREFIX) + r"[a-z0-9_]{8}")
_swept: set[str] = set()
"""Temporary folders that this process has swept."""


class ScratchFolder(tempfile.TemporaryDirectory[str]):
    """A temporary folder, removed when it is cleaned up, garbage-collected, or the process ends.
    Raises OSError, and MoecError where no folder takes temporary files."""

    def __init__(self) -> None:
        try:
            parent = tempfile.gettempdir()
        except FileNotFoundError as error:  # none of several folders takes a file: the disk is full, or read-only
            raise MoecError(f"{one_line(error)}; make room for temporary files, or set TMPDIR") from error
        if os.name == "posix" and parent not in _swept:
            _swept.add(parent)
            sweep(pathlib.Path(parent))
        while True:
            super().__init__(prefix=_PREFIX, ignore_cleanup_errors=True)
            if os.name != "posix":  # folders have no locks
                return
            with contextlib.suppress(OSError):  # another process swept it before it was locked
                lock = locked(pathlib.Path(self.name), wait=True)
                weakref.finalize(self, os.close, lock)
                if os.path.isdir(self.name):
                    return
            self.cleanup()


def tidy_up() -> None:
    """Remove the half-written files and the temporary folders of this process, before it exits immediately."""
    abandon_unfinished()
    weakref.finalize._exitfunc()  # type: ignore[attr-defined]


def sweep(parent: pathlib.Path) -> None:
    """Remove this user's scratch folders in ``parent`` whose processes have ended."""
    with contextlib.suppress(OSError):
        for name in filter(_NAME.fullmatch, os.listdir(parent)):
            with contextlib.suppress(OSError):  # its process lives, or it is another user's
                lock = locked(parent / name, wait=False)
                try:
                    if os.fstat(lock).st_uid == os.geteuid():
                        shutil.rmtree(parent / name, ignore_errors=True)
                finally:
                    os.close(lock)


def locked(folder: pathlib.Path, *, wait: bool) -> int:
    """Lock the folder and return the lock's descriptor. Raises OSError where another process holds it, unless
    ``wait``."""
    import fcntl  # only POSIX systems have it

    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
