"""Tests for what steps need: a GPU, packages of Python, NVIDIA's programs."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import pathlib
import shutil
from collections.abc import Sequence

_PACKAGES = ("torch", "triton")
_TOOLS = pathlib.Path("/usr/local/cuda/bin")


def absent_reason(needs: Sequence[str]) -> str | None:
    """The first need that is absent, as a reason; None where all are there."""
    return next((reason for reason in map(_reason, needs) if reason is not None), None)


def tool(name: str) -> str | None:
    """The path of a program."""
    return shutil.which(name) or shutil.which(name, path=str(_TOOLS))


@functools.cache
def _reason(need: str) -> str | None:
    if need == "gpu":
        return None if _has_gpu() else "no GPU"
    if need in _PACKAGES:
        return None if importlib.util.find_spec(need) else f"no {need}"
    return None if tool(need) else f"no {need}"


def _has_gpu() -> bool:
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int()
    return not library.cuInit(0) and not library.cuDeviceGetCount(ctypes.byref(count)) and count.value > 0
