"""A process for code that may end its process: it answers calls one by one, and another takes its place if it dies."""

from __future__ import annotations

import multiprocessing
import pathlib
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

_ROOT = str(pathlib.Path(__file__).parents[2])
_SECONDS = 60


class WorkerDiedError(Exception):
    """The process ended, or gave no answer for a minute."""


class Worker:
    def __init__(self) -> None:
        if _ROOT not in sys.path:  # the process unpickles functions by the names of their modules
            sys.path.append(_ROOT)
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._calls, remote = context.Pipe()
        self._process = context.Process(target=_answer, args=(remote,), daemon=True)
        self._process.start()
        remote.close()

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """``function(*arguments)`` over there. It must not raise."""
        self._calls.send((function, arguments))
        try:
            if self._calls.poll(_SECONDS):
                return self._calls.recv()
            how = f"no answer within {_SECONDS} seconds"
        except EOFError:
            self._process.join()
            how = f"the process ended with {self._process.exitcode}"
        self.stop()
        self._start()
        raise WorkerDiedError(how)

    def stop(self) -> None:
        self._process.kill()
        self._process.join()
        self._calls.close()


def _answer(calls: Connection) -> None:
    while True:
        try:
            function, arguments = calls.recv()
        except EOFError:
            return
        calls.send(function(*arguments))
