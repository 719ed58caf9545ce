"""NVIDIA's GPUs: whether one is there, and code from an artifact that it runs."""

from __future__ import annotations

import ctypes
import importlib.util
import pathlib
import re
from typing import Any

from moec.errors import ArtifactError, MoecError
from moec.runtime.artifact import Artifact
from moec.runtime.device import Gpu
from moec.runtime.device_module import DeviceModule
from moec.runtime.library import load_ffi

_DRIVER, _RUNTIME = "libcuda.so.1", "libtvm_runtime_cuda.so"
_LOADER = "ffi.Module.load_from_bytes.cuda"
_EXISTS, _CAPABILITY = 0, 4  # attributes of devices, as TVM counts them


def gpu(artifact: Artifact) -> Gpu:
    """The first GPU, ready to load the artifact's code.

    Raises MoecError where there is no driver or GPU; ArtifactError where the artifact has no code for it.
    """
    hint = "run it without one by: moec run --emulate, or moec.load(..., emulate=True)"
    try:
        ctypes.CDLL(_DRIVER)
    except OSError as error:
        raise MoecError(
            f"{artifact.where}: needs a GPU, but NVIDIA's driver is not installed ({error}); {hint}"
        ) from error
    ffi = load_ffi()
    found = importlib.util.find_spec("tvm")
    assert found is not None and found.origin is not None
    ctypes.CDLL(str(pathlib.Path(found.origin).parent / "lib" / _RUNTIME), ctypes.RTLD_GLOBAL)
    attribute = ffi.get_global_func("runtime.GetDeviceAttr")
    device = ffi.device("cuda", 0)
    if not attribute(device, _EXISTS):
        raise MoecError(f"{artifact.where}: needs a GPU, and the driver finds none; {hint}")
    name = best_binary(list(artifact.manifest.binaries), str(attribute(device, _CAPABILITY)), artifact.where)
    code = artifact.path(artifact.manifest.binaries[name]).read_bytes()
    load = ffi.get_global_func(_LOADER)

    def load_module(module: DeviceModule) -> Any:
        return load(module.with_code("cubin", code))

    return Gpu(load_module)


def best_binary(architectures: list[str], capability: str, where: str) -> str:
    """The newest of ``architectures`` that a GPU of compute capability ``capability`` (``9.0``) runs: one of its own
    major version that is not newer; one that ends in ``a`` only on exactly that GPU. Raises ArtifactError."""
    major, minor = map(int, capability.split("."))
    fitting = []
    for name in architectures:
        match = re.fullmatch(r"sm_(\d+)(\d)(a?)", name)
        if match is None or int(match[1]) != major or int(match[2]) > minor or (match[3] and int(match[2]) != minor):
            continue
        fitting.append((int(match[2]), bool(match[3]), name))
    if fitting:
        return max(fitting)[2]
    if not architectures:
        raise ArtifactError(f"{where}: holds no code for a GPU, for no nvcc was found; compile it where nvcc is")
    listed, wanted = ", ".join(architectures), f"sm_{major}{minor}"
    raise ArtifactError(
        f"{where}: holds code for {listed}, and the GPU is {wanted}; compile it with --target cuda:{wanted}"
    )
