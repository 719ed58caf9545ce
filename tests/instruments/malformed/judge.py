"""Verdicts on the command line's answers to malformed inputs: the work of a process that serves many."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import pathlib
import random
import re
import resource
import shutil
import sys
import tempfile
from typing import Any, NamedTuple

from .kinds import InputKind, kind_named

MOST_BYTES = 4 << 30
"""Memory that a case may take beyond what the process has before it."""
_ALLOCATIONS = re.compile(r"not enough memory|[Aa]llocate memory|Unable to allocate|bad_alloc|MemoryError")
_LONGEST = 4500
"""Characters of a message."""


@dataclasses.dataclass(frozen=True)
class Case:
    """Number ``index`` of a sweep over a kind, whose intact files lie in the folder ``base``."""

    kind: str
    base: str
    seed: int
    index: int

    def __str__(self) -> str:
        return f"{self.kind} 1 --seed {self.seed} --first {self.index}"


class Verdict(NamedTuple):
    """``pass``, ``refused``, ``wrong``, ``crashed``, ``hung`` or ``memory``; the damage and commands, and a message."""

    status: str
    damage: str
    message: str = ""

    @property
    def failed(self) -> bool:
        return self.status not in ("pass", "refused")


def judge(case: Case) -> Verdict:
    """Damage a copy of the intact files and run the commands of the kind on it. The first failure counts, else a
    refusal."""
    kind, rng = kind_named(case.kind), random.Random(f"{case.kind}/{case.seed}/{case.index}")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name, "case")
        shutil.copytree(case.base, folder, symlinks=True)
        damage = kind.damage(folder, rng)
        return _judged(kind, folder, rng, damage)


def describe(case: Case) -> str:
    """Describe a case whose process was lost before it could do so."""
    rng = random.Random(f"{case.kind}/{case.seed}/{case.index}")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name, "case")
        shutil.copytree(case.base, folder, symlinks=True)
        return kind_named(case.kind).damage(folder, rng)


def _judged(kind: InputKind, folder: pathlib.Path, rng: random.Random, damage: str) -> Verdict:
    verdict = Verdict("pass", damage)
    for command in kind.commands(folder, rng):
        reported = f"{damage} [{' '.join(command)}]".replace(str(folder), ".")
        status, message = run(command)
        if status not in ("pass", "refused"):
            return Verdict(status, reported, message)
        if status == "refused":
            verdict = Verdict(status, reported, message)
    return verdict


def run(command: list[str]) -> tuple[str, str]:
    """The status of a command line, and what it says on standard error."""
    _import_all()
    before = _start_of_memory()
    limit, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_memory("VmSize") + MOST_BYTES, hard))
    try:
        code, message = _main(command)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # not even an Exception: a panic of a library in Rust
        return "crashed", f"raw {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    if _ALLOCATIONS.search(message) or _memory("VmHWM") - before > MOST_BYTES:
        return "memory", message
    return _status(code, message), message


def _status(code: int, message: str) -> str:
    if code in (0, 1):
        return "pass" if code == 0 else "wrong"
    errors = [line for line in message.splitlines() if line.startswith("error: ")]
    is_refusal = code == 2 and len(errors) == 1 and message.rstrip("\n").endswith(errors[0])
    return "refused" if is_refusal and len(errors[0]) < _LONGEST else "crashed"


def _main(command: list[str]) -> tuple[int, str]:
    """The exit code, and what is said on standard error."""
    import moec.cli.main

    said, arguments = io.StringIO(), sys.argv
    sys.argv = ["moec", *command]
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            code = moec.cli.main.answer()
    finally:
        sys.argv = arguments
    return code, said.getvalue()


@functools.cache
def _import_all() -> None:
    """Libraries whose memory and time are no case's."""
    import onnxruntime  # noqa: F401
    import tvm  # noqa: F401

    import moec.cli.main  # noqa: F401


def _start_of_memory() -> int:
    """Bytes in memory; from now on VmHWM is the most from here."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # proc_pid_clear_refs(5)
    return _memory("VmRSS")


def _memory(field: str) -> int:
    text = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(rf"^{field}:\s*(\d+) kB", text, re.MULTILINE)[1]) << 10  # type: ignore[index]


def verdict_of(case: Case, result: Any) -> Verdict:
    """The verdict that a worker gives, also where its process was lost."""
    return result if isinstance(result, Verdict) else Verdict(result.kind, describe(case), result.detail)
