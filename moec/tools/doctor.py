"""Capabilities of this machine and this installation, as plain data."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
import shutil
from typing import Any

from moec import targets
from moec.common.cores import available_cores
from moec.common.errors import MoecError
from moec.common.version import VERSION
from moec.runtime import machine

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
COMPILERS = ("cc", "c++", "clang")
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
    """Collect versions, CPU, cores, compilers, findings of each kind of target, and problems that keep moec from
    working."""
    from moec.targets.build_cache import usage

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
    tools = {name: kind.find_tool(name) for kind in targets.kinds() for name in kind.tools}
    findings: dict[str, Any] = {
        "moec": VERSION,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": machine.cpu_name(),
        "vector_features": [name for name in VECTOR_FEATURES if name in features],
        "cores": len(available_cores()),
        "versions": versions,
        "compilers": {
            **{name: shutil.which(name) for name in COMPILERS},
            **{name: None if path is None else str(path) for name, path in tools.items()},
        },
        "cache": [dataclasses.asdict(folder) for folder in usage()],
        "problems": problems,
    }
    for kind in targets.kinds():
        findings |= kind.findings()
    return findings


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
