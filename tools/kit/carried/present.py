"""Tests for what steps need: a GPU that the kit is for, packages of Python, NVIDIA's programs.

python -m carried.present      # ends with the reason why there is no such GPU, or with nothing
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Sequence

_PACKAGES = ("torch", "triton")
_TOOLS = pathlib.Path("/usr/local/cuda/bin")
_HERE = pathlib.Path(__file__).resolve().parent.parent
_DRIVER, _CAPABILITY = (13, 0), (9, 0)
"""The CUDA version whose machine code the kit holds, and the compute capability that this code is for."""
_MAJOR, _MINOR = 75, 76  # attributes of devices
_SECONDS = 60


def absent_reason(needs: Sequence[str]) -> str | None:
    """The first need that is absent, as a reason; None where all are there."""
    return next((reason for reason in map(_reason, needs) if reason is not None), None)


def tool(name: str) -> str | None:
    """The path of a program."""
    return shutil.which(name) or shutil.which(name, path=str(_TOOLS))


@functools.cache
def _reason(need: str) -> str | None:
    if need == "gpu":
        return _why_no_gpu()
    if need in _PACKAGES:
        return None if importlib.util.find_spec(need) else f"no {need}"
    return None if tool(need) else f"no {need}"


def _why_no_gpu() -> str | None:
    """Ask the driver in a process of its own, since a broken one may hang or crash."""
    command = [sys.executable, "-m", "carried.present"]
    try:
        done = subprocess.run(command, cwd=_HERE, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"the driver did not answer in {_SECONDS} s"
    if done.returncode < 0:
        return f"the driver ended with signal {-done.returncode}"
    return done.stderr.strip().splitlines()[-1] if done.returncode else None


def gpu_fault() -> str | None:
    """The reason why the kit cannot use the first GPU; None where it can."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no GPU"
    count, version, device = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    numbers = ctypes.c_int(), ctypes.c_int()
    if fault := library.cuInit(0) or library.cuDeviceGetCount(ctypes.byref(count)):
        return f"no GPU: the driver says error {fault}"
    if not count.value:
        return "no GPU"
    library.cuDriverGetVersion(ctypes.byref(version))
    driver = version.value // 1000, version.value % 1000 // 10
    if driver < _DRIVER:
        return f"the driver is for CUDA {_version(driver)}; the kit needs one for {_version(_DRIVER)} or later"
    library.cuDeviceGet(ctypes.byref(device), 0)
    for number, which in zip(numbers, (_MAJOR, _MINOR), strict=True):
        library.cuDeviceGetAttribute(ctypes.byref(number), which, device)
    capability = numbers[0].value, numbers[1].value
    if capability != _CAPABILITY:
        return f"the GPU has compute capability {_version(capability)}; the kit's code is for {_version(_CAPABILITY)}"
    return None


def _version(numbers: tuple[int, int]) -> str:
    return f"{numbers[0]}.{numbers[1]}"


if __name__ == "__main__":
    sys.exit(gpu_fault())
