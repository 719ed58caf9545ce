"""Provenance of an artifact, for its manifest."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import pathlib
import platform
from typing import Any

from moec.compiling.arithmetic import KEY, ActivationRounding

_TOOLS = ("apache-tvm", "onnx", "onnx-ir", "numpy")


def provenance_of(model: Any, passes: str, rounding: ActivationRounding) -> dict[str, Any]:
    """Describe as plain data: the source with its checksum, the passes, the types that they round activations to, and
    the versions of the tools."""
    tools = {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in _TOOLS}}
    return {"source": describe_source(model), "passes": passes, KEY: dataclasses.asdict(rounding), "tools": tools}


def describe_source(model: Any) -> dict[str, Any]:
    """Describe a model's source; that of a path has a ``name`` and a ``sha256``, which of a folder is that of its
    config.json."""
    from moec.runtime.artifact import checksum

    if not isinstance(model, (str, os.PathLike)):
        return {"kind": f"{type(model).__module__}.{type(model).__qualname__}"}
    path = pathlib.Path(model)
    if path.is_dir():
        from moec.frontend.huggingface import CONFIG

        return {"kind": "folder", "name": path.resolve().name, "sha256": checksum(path / CONFIG).sha256}
    return {"kind": "file", "name": path.name, "sha256": checksum(path).sha256}
