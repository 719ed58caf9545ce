"""Programs in C that use a library of the form C, built as a user would build them."""

from __future__ import annotations

import pathlib
import subprocess
from collections.abc import Sequence
from typing import Any

from moec.runtime.team import TEAM_OBJECT
from moec.targets.base import INSTRUCTIONS

SANITIZERS = {
    "memory": ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "threads": ["-g", "-fsanitize=thread"],
}
"""Options of a C compiler by what they watch."""


def built(
    folder: pathlib.Path,
    text: str,
    artifact: pathlib.Path,
    *,
    compiler: str = "cc",
    options: Sequence[str] = (),
    from_sources: bool = False,
) -> pathlib.Path:
    """Build a program with the static library of an artifact, or with the sources of that library. Warnings are
    errors."""
    source, program = folder / "main.c", folder / "main"
    source.write_text(text)
    library: list[Any] = [artifact / f"lib{artifact.name}.a"]
    if from_sources:
        objects = [path for path in (artifact / "objects").glob("*.o") if path.name not in (INSTRUCTIONS, TEAM_OBJECT)]
        library = [*(artifact / "src" / "c").glob("*.c"), *objects]
    warnings = ["-fwrapv", "-Wl,-z,noexecstack"] if from_sources else ["-Wall", "-Wextra", "-Werror"]
    command = [compiler, "-O2", *warnings, *options, f"-I{artifact}", source, *library, "-lm", "-lpthread"]
    run([*command, "-o", program])
    return program


def run(command: Sequence[Any]) -> str:
    """Run a command and return its output. Raises AssertionError, with its messages, where it fails."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout
