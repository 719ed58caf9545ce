"""What this machine and this installation can do, as plain data."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
from typing import Any

import moec
from moec.errors import MoecError
from moec.runtime import machine
from moec.runtime.driver import open_driver

PACKAGES = (
    "apache-tvm",
    "apache-tvm-ffi",
    "apache-tvm-ffi-orcjit",
    "numpy",
    "ml_dtypes",
    "onnx",
    "onnx-ir",
    "onnxruntime",
    "onnxscript",
    "torch",
    "transformers",
)
OPTIONAL_PACKAGES = frozenset({"torch", "transformers"})
COMPILERS = ("cc", "c++", "clang", "vitis_hls", "v++")  # none is needed for the CPU target
CUDA_TOOLS = ("nvcc", "cuobjdump")  # for code for GPUs, and for showing it
VECTOR_FEATURES = (
    "avx2",
    "fma",
    "avx512f",
    "avx512vnni",
    "avx512bf16",
    "avx512fp16",
    "avxvnni",
    "amxtile",
    "amxint8",
    "amxbf16",
    "asimd",
    "asimddp",
    "bf16",
    "i8mm",
    "sve",
)


def examine() -> dict[str, Any]:
    """Versions, the CPU, cores, GPUs, compilers found, and problems that keep moec from working."""
    from moec.targets.cuda.nvcc import find_tool

    versions = {name: _version(name) for name in PACKAGES}
    problems = [
        f"{name} is not installed"
        for name, version in versions.items()
        if not version and name not in OPTIONAL_PACKAGES
    ]
    try:
        from moec.runtime.library import load_ffi

        load_ffi()
    except (MoecError, ImportError) as error:
        problems.append(str(error))
    features = machine.cpu_features()
    tools = {name: find_tool(name) for name in CUDA_TOOLS}
    return {
        "moec": moec.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": machine.cpu_name(),
        "vector_features": [name for name in VECTOR_FEATURES if name in features],
        "cores": len(machine.available_cores()),
        "versions": versions,
        "compilers": {
            **{name: shutil.which(name) for name in COMPILERS},
            **{name: None if path is None else str(path) for name, path in tools.items()},
        },
        "gpu": examine_gpus(),
        "problems": problems,
    }


def examine_gpus() -> dict[str, Any]:
    """The version of CUDA that the driver supports, and each GPU; or in ``absent`` why there is none."""
    try:
        driver = open_driver()
        gpus = [
            {"name": one.name, "compute_capability": one.capability, "memory_gb": round(one.memory_bytes / 1e9, 1)}
            for one in driver.gpus()
        ]
        version = ".".join(map(str, driver.version))
    except MoecError as error:
        return {"driver_cuda": None, "devices": [], "absent": str(error)}
    return {"driver_cuda": version, "devices": gpus, "absent": None if gpus else "the driver finds no GPU"}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
