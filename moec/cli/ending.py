"""End of the command line when a user interrupts it, or when its output is closed or full."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import threading
import weakref
from collections.abc import Iterator
from typing import Any, TextIO

from moec.cli import INTERRUPTED
from moec.common.errors import MoecError
from moec.common.replacing import abandon_unfinished

CLOSED = 141
"""Exit code that shells report of a program ended by SIGPIPE."""
_GRACE = 0.6
"""Seconds in which an interrupted program may tidy up."""


class OutputError(MoecError):
    """Standard output takes no more. ``is_closed``: whether nobody reads it."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"standard output: {error.strerror or error}")
        self.is_closed = error.errno == errno.EPIPE


def end_when_interrupted() -> None:
    """Let Ctrl-C end the process immediately with :data:`INTERRUPTED`, removing half-written files and temporary
    folders. This is only for the main thread of a program of its own.

    A thread does that, because Python's own way waits for the library that is running, and some libraries abort when a
    callback then raises an exception.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as for programs in the background
        return
    heard, said = os.pipe()
    os.set_blocking(said, False)
    signal.set_wakeup_fd(said, warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, lambda _signal, _frame: None)

    def wait() -> None:
        while os.read(heard, 1) != bytes([signal.SIGINT]):
            pass
        tidying = threading.Thread(target=_tidy, daemon=True)
        tidying.start()
        tidying.join(_GRACE)
        os._exit(INTERRUPTED)

    threading.Thread(target=wait, name="moec-interrupt", daemon=True).start()


def _tidy() -> None:
    abandon_unfinished()
    weakref.finalize._exitfunc()  # type: ignore[attr-defined]  # temporary folders


class CheckedOutput:
    """Standard output whose errors are MoecErrors, so that no library mistakes them for its own. Characters that its
    encoding lacks become question marks."""

    def __init__(self, stream: TextIO) -> None:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._explained():
            return self._stream.write(text)

    def flush(self) -> None:
        with self._explained():
            self._stream.flush()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)  # the rest goes there when the process ends
            os.dup2(nowhere, self._stream.fileno())
            raise OutputError(error) from error
