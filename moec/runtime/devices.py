"""Selection of the device that an artifact runs on."""

from __future__ import annotations

from moec import targets
from moec.common.errors import MoecError
from moec.runtime.artifact import Artifact
from moec.runtime.device import Device


def device_of(artifact: Artifact, *, emulate: bool = False, architecture: str | None = None) -> Device | None:
    """Select the device; None stands for the processor.

    ``architecture``: of the program to run, where the artifact has several; by default the best for the device, or the
    newest where it is emulated. Raises MoecError for a device that is not there, for a target without emulator, and for
    an architecture that the artifact has no program for.
    """
    program, target = artifact.program(architecture), artifact.manifest.target
    kind = targets.program_kind_of(target)
    if not emulate:
        return kind.device(artifact, architecture)
    device = kind.emulated_device(program.architecture)
    if device is None:
        raise MoecError(f"{artifact.where}: is compiled for {target}, which needs no emulation")
    return device
