"""Commands that stop in the middle of their writing, after a given number of bytes.

``python -m tests.exporting.stopping HOW BYTES ARGUMENTS`` runs ``moec ARGUMENTS`` and stops so: ``SIGTERM`` and other
signals are sent to the process, which then waits; with ``SIGTERM+`` it goes on as soon as its files are gone; ``WAIT``
prints a line and waits for one.
"""

from __future__ import annotations

import builtins
import contextlib
import io
import os
import pathlib
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

UNFINISHED = ".moec-unfinished-"
COMMAND = [sys.executable, "-m", "tests.exporting.stopping"]


@contextlib.contextmanager
def stopping(after: int, stop: Callable[[], None]) -> Iterator[None]:
    """Context in which ``stop`` is called as soon as unfinished outputs have ``after`` bytes."""
    written = 0

    class Counted(io.BufferedWriter):
        def write(self, content: Any) -> int:
            nonlocal written
            data = memoryview(content).cast("B")
            here = after - written
            written += len(data)
            if not 0 <= here < len(data):
                return super().write(data)
            super().write(data[:here])
            self.flush()
            stop()
            return here + super().write(data[here:])

    original = io.open

    def opened(path: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if isinstance(path, int) or UNFINISHED not in os.fspath(path) or not mode.startswith("w"):
            return original(path, mode, *arguments, **options)
        file = Counted(io.FileIO(path, "w"))
        return file if "b" in mode else io.TextIOWrapper(file, encoding="utf-8", write_through=True)

    with mock.patch.object(io, "open", opened), mock.patch.object(builtins, "open", opened):
        yield


def main() -> None:
    from moec.cli.main import main as run

    how, after, *words = sys.argv[1:]
    sys.argv = ["moec", *words]
    with stopping(int(after), lambda: _stop(how)):
        run()


def _stop(how: str) -> None:
    if how == "WAIT":
        print("ready", flush=True)
        sys.stdin.readline()
        return
    unfinished = next(pathlib.Path().glob(f"**/{UNFINISHED}*"))
    os.kill(os.getpid(), signal.Signals[how.rstrip("+")])
    while not how.endswith("+") or unfinished.exists():
        time.sleep(0.001)


if __name__ == "__main__":
    main()
