"""Steps of first light, each a process of its own under a time limit, and the report of what they found."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

SHORT, LONG = 180, 900
"""Seconds that a step may take."""
KEPT_OUTPUT, SHOWN_OUTPUT = 6000, 600
PASSED, FAILED, TIMED_OUT, ABSENT = "passed", "failed", "timed out", "absent"
_GRACE = 20
"""Seconds that a killed process may take to end: the driver first has to stop what it runs on a GPU."""
_running: set[subprocess.Popen[bytes]] = set()
_stopping = threading.Event()


@dataclasses.dataclass(frozen=True)
class FirstLightStep:
    """A step. ``absent``: reason why it cannot be taken here; None where it can. ``environment``: variables that it
    gets beside those of this process."""

    name: str
    command: Sequence[str]
    seconds: float = SHORT
    folder: pathlib.Path = pathlib.Path()
    absent: str | None = None
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


class FirstLightReport:
    """Results by step, in a file that is always complete. Raises ValueError for a file that is no report, or that of
    other code or another machine."""

    def __init__(self, path: pathlib.Path, mark: str, about: dict[str, Any]) -> None:
        """``mark``: the key of ``about`` in the file, which says whose report it is."""
        self._path, self._mark, self.about = path, mark, about
        self.results: dict[str, dict[str, Any]] = {}
        if path.exists():
            with contextlib.suppress(ValueError, AttributeError):  # no JSON, or no object
                report = json.loads(path.read_text(encoding="utf-8"))
                if report.get(mark) == about:
                    self.results = report["steps"]
                    return
            raise ValueError(f"{path}: not a report of {about}; remove it or choose another --report")

    def add(self, name: str, result: dict[str, Any]) -> None:
        self.results[name] = result
        text = json.dumps({self._mark: self.about, "steps": self.results}, indent=1)
        replace_text(self._path, text)


def replace_text(path: pathlib.Path, text: str) -> None:
    """Write a file that is complete at any time. Raises OSError, and leaves the old file then."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
        try:
            file.write(text)
            file.close()
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def stop_all() -> None:
    """End the steps that run now, and all that would begin, from a handler of signals or another thread."""
    _stopping.set()
    for process in list(_running):
        _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process with its own children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def take(step: FirstLightStep) -> dict[str, Any]:
    """Take a step. Returns its outcome, the end of its output, and its seconds."""
    if step.absent is not None:
        return {"outcome": ABSENT, "output": step.absent, "seconds": 0.0}
    start = time.monotonic()
    if not step.folder.is_dir():
        return {"outcome": FAILED, "output": f"{step.folder}: its program was not made", "seconds": 0.0}
    with os.fdopen(os.memfd_create("said"), "w+b") as said:  # in memory, since a disk may be full
        process = subprocess.Popen(
            step.command,
            cwd=step.folder,
            env={**os.environ, **step.environment},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
        _running.add(process)
        if _stopping.is_set():
            _kill(process)
        try:
            code: int | None = process.wait(step.seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:  # also where this process is interrupted
            if process.returncode is None:
                _kill(process)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_GRACE)
            _running.discard(process)
        said.seek(max(said.seek(0, os.SEEK_END) - KEPT_OUTPUT, 0))
        output = said.read().decode(errors="replace")
    outcome = TIMED_OUT if code is None else PASSED if code == 0 else FAILED
    return {"outcome": outcome, "code": code, "output": output, "seconds": round(time.monotonic() - start, 1)}
