"""Which device an artifact runs on."""

from __future__ import annotations

import importlib

from moec.errors import MoecError
from moec.runtime.artifact import Artifact
from moec.runtime.device import Device

_EMULATORS = {"cuda": "moec.simulators.cuda.device"}
"""Modules with a function ``emulated_device``, by kind of target. Imported only where emulation is asked for."""


def device_of(artifact: Artifact, *, emulate: bool = False, architecture: str | None = None) -> Device | None:
    """None for the processor. ``architecture``: of the program to run, where the artifact has several; by default the
    best for the GPU, or the newest where it is emulated. Raises MoecError for a device that is not there, for a target
    without emulator, and for an architecture that the artifact has no program for."""
    program = artifact.program(architecture)
    kind = artifact.manifest.target.partition(":")[0]
    if emulate:
        if kind not in _EMULATORS:
            raise MoecError(f"{artifact.where}: is compiled for {artifact.manifest.target}, which needs no emulation")
        device: Device = importlib.import_module(_EMULATORS[kind]).emulated_device(program.architecture)
        return device
    if kind != "cuda":
        return None
    from moec.runtime.gpu import gpu

    return gpu(artifact, architecture)
