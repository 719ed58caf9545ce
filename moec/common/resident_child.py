"""Untrusted work as of :mod:`moec.common.child`, in processes that stay: a start takes longer than most messages do."""

from __future__ import annotations

import contextlib
import os
import pathlib
import subprocess
import threading
import weakref
from collections.abc import Sequence

from moec.common.child import SLOWEST, Limits, command_of, refused_error, run_child
from moec.common.child_program import ANSWER_HEAD, DONE, MESSAGE_HEAD, REFUSED, STAYS


class ResidentChild:
    """Runner of one program for messages of any threads.

    A process gets one message at a time, and as many stay as there were messages at once. ``limits`` are those of a
    message; a process that has computed for half of the time ends, so that a message has the other half at least. A
    message without an answer is run again in a process of its own, which then tells why it fails.
    """

    def __init__(self, program: pathlib.Path, limits: Limits, packages: Sequence[str] = ()) -> None:
        self._program, self._limits, self._packages = program, limits, packages
        self._idle: list[_Process] = []

    def run(self, message: bytes) -> bytes:
        """Return ``main(message)`` of the program. Raises as :func:`moec.common.child.run_child`."""
        process = self._taken()
        try:
            code, answer = process.ask(message, self._limits)
        except (OSError, EOFError):
            process.end()
            return run_child(self._program, message, self._limits, packages=self._packages)
        except BaseException:
            process.end()  # its answer would be taken for that of another message
            raise
        self._idle.append(process)
        if code == REFUSED:
            raise refused_error(answer)
        return answer

    def _taken(self) -> _Process:
        """A process that nobody else uses. Those of before a fork belong to the other side of it."""
        with contextlib.suppress(IndexError):
            while (process := self._idle.pop()).owner != os.getpid():
                pass
            return process
        return _Process(command_of(STAYS, self._program, self._limits, packages=self._packages))


class _Process:
    """A process that answers one message after the other. ``owner``: the process that started it."""

    def __init__(self, command: Sequence[str]) -> None:
        self.owner = os.getpid()
        self._inner = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is not for it
        )
        self.end = weakref.finalize(self, _end, self._inner, self.owner)

    def ask(self, message: bytes, limits: Limits) -> tuple[int, bytes]:
        """Send a message, and return how it ended, and the answer. Raises OSError or EOFError where none comes."""
        watch = threading.Timer(limits.seconds * SLOWEST, self._inner.kill)
        watch.daemon = True
        watch.start()
        try:
            assert self._inner.stdin is not None
            self._inner.stdin.write(MESSAGE_HEAD.pack(len(message)) + message)
            self._inner.stdin.flush()
            code, size = ANSWER_HEAD.unpack(self._read(ANSWER_HEAD.size))
            if code not in (DONE, REFUSED) or size > limits.memory:
                raise EOFError
            return code, self._read(size)
        finally:
            watch.cancel()

    def _read(self, size: int) -> bytes:
        assert self._inner.stdout is not None
        content = self._inner.stdout.read(size)
        if len(content) < size:
            raise EOFError
        return content


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    if os.getpid() != owner:
        return
    process.kill()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        with contextlib.suppress(OSError):
            pipe.close()
    process.wait()
