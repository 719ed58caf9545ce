"""Writes a kernel as a program of its own, with numbers that it runs on and is checked with."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

from moec import targets
from moec.common.replacing import check_replaceable
from moec.common.seals import foreign_file, write_sealed
from moec.errors import MoecError
from moec.runtime.artifact import Artifact
from moec.runtime.read_manifest import is_inside_name
from moec.tools.kernel_calls import catch_call


def write_standalone(artifact: Artifact, kernel: str, folder: pathlib.Path, architecture: str | None = None) -> None:
    """Write the program's files, named after the kernel, to a folder, which is made where it is missing.

    The artifact runs emulated for the numbers. Raises what :meth:`moec.targets.kind.ProgramKind.standalone` does;
    MoecError for a kernel that computes nothing and a folder that cannot be written, and what emulation raises. Then
    nothing is written.
    """
    artifact.program(architecture)  # refuses one without programs
    if not is_inside_name(kernel):
        raise MoecError(f"{artifact.where}: kernel {kernel!r} cannot be the name of a file; the artifact was altered")
    program = targets.program_kind_of(artifact.manifest.target).standalone(artifact, kernel, architecture)
    tensors = catch_call(artifact, kernel, program.parameters, architecture, program.least_size)
    _write(folder, program.files(tensors))


def _write(folder: pathlib.Path, files: Mapping[str, bytes]) -> None:
    """All files, each complete before it has its name, in the place of nothing but those that moec wrote. Raises
    MoecError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MoecError(f"{folder}: the program cannot be written: {error.strerror or error}") from error
    for name in files:
        check_replaceable(folder / name, foreign_file)
    for name, content in files.items():
        write_sealed(folder / name, content, "// ")
