"""End of the command line when it is interrupted or told to end, or when its output is closed or full."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from moec.common.errors import MoecError
from moec.common.last_words import spoken
from moec.common.scratch import tidy_up

CLOSED = 141
"""Exit code that shells report of a program ended by SIGPIPE."""
_GRACE = 0.6
"""Seconds in which a program that ends may tidy up."""
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""Signals that end the process: Ctrl-C, ``kill``, and a terminal that is closed."""
_ending = threading.Event()
_on_interrupt: list[Callable[[], None]] = []
_said = threading.Event()


class OutputError(MoecError):
    """Standard output takes no more. ``is_closed``: whether nobody reads it."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"standard output: {error.strerror or error}")
        self.is_closed = error.errno == errno.EPIPE


def open_closed_streams() -> None:
    """Open the null device for each standard stream that the process was started without. A file would get its number
    else, with everything that libraries print."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is the stream's
            setattr(sys, name, os.fdopen(nowhere, mode, encoding="utf-8"))


def end_when_told() -> None:
    """Let Ctrl-C, SIGTERM and SIGHUP end the process immediately with the exit code that shells report of them,
    removing half-written files and temporary folders. This is only for the main thread of a program of its own.

    A thread does that, because Python's own way waits for the library that is running, and some libraries abort when a
    callback then raises an exception.
    """
    heard, said = os.pipe()
    os.set_blocking(said, False)
    signal.set_wakeup_fd(said, warn_on_full_buffer=False)
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as for programs in the background, and under nohup
            signal.signal(number, lambda _signal, _frame: None)

    def wait() -> None:
        while (number := os.read(heard, 1)[0]) not in _SIGNALS or (number == signal.SIGINT and _on_interrupt):
            if number == signal.SIGINT:
                _on_interrupt[-1]()
        _ending.set()
        tidying = threading.Thread(target=tidy_up, daemon=True)
        tidying.start()
        tidying.join(_GRACE)
        if number == signal.SIGTERM:  # launchers of several processes send it when one of them is lost
            for line in spoken():
                if not _said.is_set():  # the main thread may have noticed at the same time
                    say_error(line, sys.__stderr__)  # the main thread may have silenced the other name of it
        os._exit(128 + number)

    threading.Thread(target=wait, name="moec-end", daemon=True).start()


@contextlib.contextmanager
def call_when_told(stop: Callable[[], None]) -> Iterator[None]:
    """Context in which Ctrl-C, SIGTERM and SIGHUP call ``stop`` on the main thread instead of ending the process. Off
    the main thread, which alone hears signals, it has no effect."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    wakeup = signal.set_wakeup_fd(-1)  # the thread of end_when_told sleeps
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, lambda _signal, _frame: stop())
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)


@contextlib.contextmanager
def call_when_interrupted(stop: Callable[[], None]) -> Iterator[None]:
    """Context in which Ctrl-C calls ``stop``, on a thread of its own, instead of ending the process."""
    _on_interrupt.append(stop)
    try:
        yield
    finally:
        _on_interrupt.pop()


def wait_if_ending() -> None:
    """Wait for the end of a process that was told to end. Its files are gone, so an error says nothing to its user."""
    if _ending.is_set():
        threading.Event().wait()


def say_error(text: str, stream: TextIO | None = None) -> None:
    """Print an error as one line on a stream, by default ``sys.stderr``."""
    _said.set()
    with contextlib.suppress(OSError):
        print(f"error: {' '.join(text.split())}", file=stream or sys.stderr, flush=True)


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
