"""Device code of the kit: machine code for the GPU, and the library of the same text for the emulator."""

from __future__ import annotations

import hashlib
import pathlib
import shutil
from collections.abc import Iterable, Mapping

import numpy as np

from kit.recording import TapeRecorder
from kit.tapes import KitStore
from moec.common.errors import MoecError
from moec.runtime.artifact import Artifact
from moec.runtime.device_module import DeviceCall
from moec.simulators.cuda.launch import EmulatedLaunch
from moec.simulators.cuda.library import emulated_library
from moec.targets.cuda.nvcc import compile_source

ARCHITECTURE = "sm_90a"


def device_code(store: KitStore, source: str, calls: Iterable[DeviceCall], *, emulated: bool = True) -> str:
    """Compile device code and return its digest. ``emulated``: also for the emulator. Raises MoecError without nvcc."""
    digest = hashlib.sha256(source.encode()).hexdigest()
    target = store.folder / "code" / f"{digest}.fatbin"
    if target.exists():
        return digest
    compiled = compile_source(source, ARCHITECTURE)
    if compiled is None:
        raise MoecError("nvcc was not found; the kit holds machine code: install it with: pip install 'moec[cuda]'")
    target.write_bytes(compiled.binary)
    if emulated:
        launches = [EmulatedLaunch(call.name, call.launch) for call in calls]
        library = emulated_library(source, launches, architecture=ARCHITECTURE, portable=True)
        shutil.copy(library, target.with_suffix(".so"))
    return digest


def keep_code(artifact: Artifact, recorder: TapeRecorder, store: KitStore) -> None:
    """Copy the artifact's machine code and its emulated libraries, named after the code that they are made of."""
    binary = artifact.program().binary
    if binary is None:
        raise MoecError("nvcc was not found; the kit holds machine code: install it with: pip install 'moec[cuda]'")
    for digest in recorder.modules:
        target = store.folder / "code" / f"{digest}.fatbin"
        if not target.exists():
            shutil.copy(artifact.path(binary), target)
        if digest in recorder.libraries:
            shutil.copy(recorder.libraries[digest], target.with_suffix(".so"))


def keep_artifact(name: str, path: pathlib.Path, arrays: Mapping[str, np.ndarray], store: KitStore) -> None:
    """Copy an artifact, and store arrays; bfloat16 as its bits."""
    target = store.folder / "artifacts" / f"{name}.moec"
    shutil.copytree(path, target)
    bits = {key: array.view(np.uint16) if array.dtype.name == "bfloat16" else array for key, array in arrays.items()}
    np.savez(target.with_suffix(".npz"), **bits)
