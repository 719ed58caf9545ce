"""Untrusted work in a separate Python process with limits of time and memory.

If a library crashes, hangs or fills the memory there, that is one error here. The process skips Python's site packages
and imports only what its program names, so that it starts almost as fast as the interpreter. ``multiprocessing`` is not
used, because its children run a user's script again or inherit locks that threads of this process hold.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import pathlib
import signal
import subprocess
import sys
from collections.abc import Sequence

from moec.common.child_program import NO_MEMORY, ONCE, REFUSED

_RUNNER = pathlib.Path(__file__).with_name("child_program.py")
SLOWEST = 4
"""Seconds of real time for each second of computing that is allowed, because a core may be shared with others."""
_LONGEST = 300
"""Characters of a reason."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """Seconds that a child may compute, and bytes of memory that it may allocate. On a system without such limits
    (Windows) only real time is limited, to four times as many seconds."""

    seconds: float
    memory: int


class ChildError(Exception):
    """The child returned no result; the text says why."""


class RefusedError(ChildError):
    """The program raised an exception: the text is its message, ``kind`` the name of its type."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


class LostError(ChildError):
    """A limit or a signal ended the process. The text continues a sentence, such as "does not end within 60 s"."""


def run_child(
    program: pathlib.Path, message: bytes, limits: Limits, *arguments: str, packages: Sequence[str] = ()
) -> bytes:
    """Run ``main(message, *arguments)`` of the file ``program`` in a new process and return its result.

    The program can import the standard library and the contents of the folders of ``packages``, installed top-level
    packages; nothing of moec. Raises RefusedError for an exception of the program, LostError where a limit or a signal
    ended it, and OSError where no process can be started.
    """
    command = command_of(ONCE, program, limits, *arguments, packages=packages)
    try:
        done = subprocess.run(
            command, input=message, capture_output=True, timeout=limits.seconds * SLOWEST, check=False
        )
    except subprocess.TimeoutExpired:
        raise LostError(_too_long(limits)) from None
    if done.returncode == REFUSED:
        raise refused_error(done.stdout)
    if done.returncode == NO_MEMORY:
        raise LostError(f"needs more than {limits.memory >> 20} MB of memory")
    if done.returncode < 0:
        raise LostError(_ended_by(signal.Signals(-done.returncode), done.stderr, limits))
    if done.returncode:
        raise LostError(f"ends its process with exit code {done.returncode}{_first_line(done.stderr)}")
    return done.stdout


def command_of(
    mode: str, program: pathlib.Path, limits: Limits, *arguments: str, packages: Sequence[str] = ()
) -> list[str]:
    """Command line of a process of :mod:`moec.common.child_program`, for one message or for several (``mode``)."""
    folders = list(dict.fromkeys(folder for name in packages for folder in _folders(name)))
    command = [sys.executable, "-I", "-S", str(_RUNNER), mode, str(limits.seconds), str(limits.memory)]
    return [*command, json.dumps(folders), str(program), *arguments]


def refused_error(answer: bytes) -> RefusedError:
    """The exception of a program, as it was written there."""
    kind, reason = json.loads(answer)
    return RefusedError(kind, reason)


def _folders(package: str) -> list[str]:
    """List the folders that an import of a top-level package searches; empty where it is not installed."""
    spec = importlib.util.find_spec(package)
    locations = None if spec is None else spec.submodule_search_locations
    return [str(pathlib.Path(location).parent) for location in locations or ()]


def _ended_by(ending: signal.Signals, said: bytes, limits: Limits) -> str:
    return _too_long(limits) if ending.name == "SIGXCPU" else f"crashes with {ending.name}{_first_line(said)}"


def _too_long(limits: Limits) -> str:
    return f"does not end within {limits.seconds:g} s"


def _first_line(said: bytes) -> str:
    lines = said.decode(errors="replace").split("\n")
    first = next((line.strip() for line in lines if line.strip()), "")
    return f" ({first[:_LONGEST]})" if first else ""
