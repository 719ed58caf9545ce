"""Packed artifacts as models, on the GPU or in the emulator."""

from __future__ import annotations

import functools
import hashlib
import pathlib
from typing import Any


def load_model(folder: pathlib.Path, name: str, *, emulate: bool, cuda_graphs: bool = False) -> Any:
    """Load an artifact of the kit. Raises moec's errors."""
    from moec.artifacts.loading import load

    path = folder / "artifacts" / f"{name}.moec"
    return _emulated(folder, path, cuda_graphs) if emulate else load(path, cuda_graphs=cuda_graphs)


def _emulated(folder: pathlib.Path, path: pathlib.Path, cuda_graphs: bool) -> Any:
    """Load an artifact with the packed libraries in place of its device code."""
    from moec.runtime.artifact import open_artifact
    from moec.runtime.load_options import LoadOptions
    from moec.runtime.model import CompiledModel
    from moec.simulators.cuda.device import emulated_device
    from moec.simulators.cuda.driver import emulated_driver
    from moec.targets.cuda.device.gpu import CudaGpu

    artifact = open_artifact(path)
    architecture = artifact.program().architecture
    emulated_device(architecture)
    loader = functools.partial(_library, folder)
    device = CudaGpu(loader, emulated_driver(), architecture, is_emulated=True)
    return CompiledModel(artifact, LoadOptions(cuda_graphs=cuda_graphs), device)


def _library(folder: pathlib.Path, module: Any) -> Any:
    from moec.runtime.library import load_ffi
    from moec.simulators.cuda.driver import launch_recorder

    digest = hashlib.sha256(module.code).hexdigest()
    loaded = load_ffi().load_module(str(folder / "code" / f"{digest}.so"))
    loaded["record_by"](launch_recorder())
    return loaded
