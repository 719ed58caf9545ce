"""Runs one kernel on numpy arrays: here, or, compiled for AArch64, under qemu.

All arrays are guarded: touching a byte behind one ends the process.
"""

from __future__ import annotations

import functools
import pathlib
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tvm_ffi import libinfo

from moec.runtime.tensors import to_runtime
from moec.targets.cpu.machine import MACHINES, Machine, host_has

from .guarded import guarded

Run = Callable[..., np.ndarray]
_DRIVER = pathlib.Path(__file__).parent / "aarch64_driver.c"
_COMPILER, _EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
_TYPE_CODES = {"int": 0, "uint": 1, "float": 2, "bfloat": 4, "bool": 6}  # DLPack's


def build(kernel: Any, machine: Machine) -> Run:
    """The kernel as a function of numpy arrays; the last argument is the output and is returned."""
    return _emulated(_compiled(kernel, machine)) if is_emulated(machine) else _native(_compiled(kernel, machine))


def is_emulated(machine: Machine) -> bool:
    return not machine.is_x86 and not host_has(machine.features)


def machines(*names: str) -> list[Any]:
    """Parameters for pytest: the named machines, or all; those that cannot be had here are skipped with a reason."""
    return [pytest.param(name, marks=_skipped(MACHINES[name])) for name in names or MACHINES]


def _skipped(machine: Machine) -> list[Any]:
    if host_has(machine.features):
        return []
    if machine.is_x86:
        return [pytest.mark.skip(reason=f"this processor cannot run {machine.name}")]
    missing = [tool for tool in (_COMPILER, _EMULATOR) if shutil.which(tool) is None]
    return [pytest.mark.skip(reason=f"emulating AArch64 needs {' and '.join(missing)}")] if missing else []


def _compiled(kernel: Any, machine: Machine) -> Any:
    import tvm

    module = tvm.IRModule({"kernel": kernel.with_attr("global_symbol", "kernel")})
    return tvm.tirx.build(module, target=tvm.target.Target(machine.llvm))


def _native(module: Any) -> Run:
    function = module["kernel"]

    def run(*arrays: np.ndarray) -> np.ndarray:
        copies = [guarded(array) for array in arrays]
        function(*map(to_runtime, copies))
        return copies[-1].copy()

    return run


def _emulated(module: Any) -> Run:
    def run(*arrays: np.ndarray) -> np.ndarray:
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            (folder / "arrays").write_bytes(struct.pack("<q", len(arrays)) + b"".join(map(_described, arrays)))
            (folder / "driver").write_bytes(program)
            (folder / "driver").chmod(0o700)
            # -cpu max: with all extensions that the emulator knows
            command = [_EMULATOR, "-cpu", "max", folder / "driver", folder / "arrays", folder / "results"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"the kernel ended with {done.returncode} under {_EMULATOR}: {done.stderr}"
            results = (folder / "results").read_bytes()
        last = arrays[-1]
        return np.frombuffer(results[len(results) - last.nbytes :], last.dtype).reshape(last.shape).copy()

    program = _linked(module)
    return run


def _linked(module: Any) -> bytes:
    """A program of the driver and the kernel, without any library that the emulator would have to find."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        module.write_to_file(str(folder / "kernel.o"))
        command = [_COMPILER, "-static", "-o", folder / "program", _driver_object(), folder / "kernel.o", "-lm"]
        subprocess.run(command, check=True)
        return (folder / "program").read_bytes()


@functools.cache
def _driver_object() -> str:
    folder = tempfile.mkdtemp(prefix="moec-driver-")
    include = [libinfo.find_include_path(), libinfo.find_dlpack_include_path()]
    options = [f"-I{path}" for path in include]
    subprocess.run([_COMPILER, "-O1", "-c", *options, "-o", f"{folder}/driver.o", _DRIVER], check=True)
    return f"{folder}/driver.o"


def _described(array: np.ndarray) -> bytes:
    array = np.ascontiguousarray(array)
    kind = array.dtype.name.rstrip("0123456789")
    header = struct.pack("<4i", _TYPE_CODES[kind], array.dtype.itemsize * 8, 1, array.ndim)
    return header + struct.pack(f"<{array.ndim}qq", *array.shape, array.nbytes) + array.tobytes()
