"""Where an artifact comes from, as its manifest says."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import pathlib
import platform
from typing import Any

from moec.arithmetic import KEY, Rounding

_TOOLS = ("apache-tvm", "onnx", "onnx-ir", "numpy")


def provenance_of(model: Any, passes: str, rounding: Rounding) -> dict[str, Any]:
    """Plain data: the source with its checksum, the passes, what they round activations to, the versions of what took
    part."""
    tools = {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in _TOOLS}}
    return {"source": _describe_source(model), "passes": passes, KEY: dataclasses.asdict(rounding), "tools": tools}


def _describe_source(model: Any) -> dict[str, Any]:
    from moec.runtime.artifact import checksum

    if not isinstance(model, (str, os.PathLike)):
        return {"kind": f"{type(model).__module__}.{type(model).__qualname__}"}
    path = pathlib.Path(model)
    if path.is_dir():
        from moec.frontend.huggingface import CONFIG

        return {"kind": "folder", "name": path.resolve().name, "sha256": checksum(path / CONFIG).sha256}
    return {"kind": "file", "name": path.name, "sha256": checksum(path).sha256}
