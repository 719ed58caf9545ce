"""A kernel as a standalone program, with captured inputs to run on and outputs to check."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

from moec import targets
from moec.common.errors import MoecError
from moec.common.replacing import check_replaceable
from moec.common.seals import foreign_file, write_sealed
from moec.runtime.artifact import Artifact
from moec.runtime.read_manifest import is_inside_name
from moec.tools.kernel_calls import catch_call


def write_standalone(artifact: Artifact, kernel: str, folder: pathlib.Path, architecture: str | None = None) -> None:
    """Write the program's files, named after the kernel, to a folder, which is created if necessary.

    The artifact runs emulated to capture the numbers. Raises the errors of
    :meth:`moec.targets.kind.ProgramKind.standalone` and of emulation, and MoecError for a kernel that computes nothing
    and a folder that cannot be written. Then nothing is written.
    """
    artifact.program(architecture)  # raises for an artifact without programs
    if not is_inside_name(kernel):
        raise MoecError(f"{artifact.where}: kernel {kernel!r} cannot be the name of a file; the artifact was altered")
    program = targets.program_kind_of(artifact.manifest.target).standalone(artifact, kernel, architecture)
    tensors = catch_call(artifact, kernel, program.parameters, architecture, program.least_size)
    _write(folder, program.files(tensors))


def _write(folder: pathlib.Path, files: Mapping[str, bytes]) -> None:
    """Write all files, each complete before it gets its name. Only files that moec wrote are replaced. Raises
    MoecError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MoecError(f"{folder}: the program cannot be written: {error.strerror or error}") from error
    for name in files:
        check_replaceable(folder / name, foreign_file)
    for name, content in files.items():
        write_sealed(folder / name, content, "// ")
