"""Runs one kernel on numpy arrays: here, or, compiled for AArch64, under qemu.

All arrays are guarded: touching a byte behind one ends the process.
"""

from __future__ import annotations

import abc
import functools
import pathlib
import shutil
import struct
import subprocess
import tempfile
from typing import Any, Protocol

import numpy as np
import pytest
from tvm_ffi import libinfo

from moec.runtime.tensors import to_runtime
from moec.targets.cpu.hardware.machine import MACHINES, Machine, host_has
from moec.targets.tvm.phases.pipeline import KERNEL_PIPELINE

from ..guarded import guarded

_DRIVER = pathlib.Path(__file__).parent / "aarch64_driver.c"
_COMPILER, _EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
_TYPE_CODES = {"int": 0, "uint": 1, "float": 2, "bfloat": 4, "bool": 6}  # DLPack's


class Kernel(Protocol):
    """A compiled kernel."""

    def __call__(self, *arrays: np.ndarray) -> np.ndarray:
        """Run it; the last array is the output and is returned."""
        return self.outputs(1, *arrays)[0]

    @abc.abstractmethod
    def outputs(self, count: int, *arrays: np.ndarray) -> list[np.ndarray]:
        """Run it; the last ``count`` arrays are outputs and are returned. The given arrays are not changed."""


def build(kernel: Any, machine: Machine) -> Kernel:
    """The kernel, ready to run on this computer."""
    import tvm

    module = tvm.IRModule({"kernel": kernel.with_attr("global_symbol", "kernel")})
    compiled = tvm.tirx.build(module, target=tvm.target.Target(machine.llvm), pipeline=KERNEL_PIPELINE)
    return _EmulatedKernel(compiled) if is_emulated(machine) else _NativeKernel(compiled)


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


class _NativeKernel(Kernel):
    def __init__(self, module: Any) -> None:
        self._function = module["kernel"]

    def outputs(self, count: int, *arrays: np.ndarray) -> list[np.ndarray]:
        copies = [guarded(array) for array in arrays]
        self._function(*map(to_runtime, copies))
        return [copy.copy() for copy in copies[-count:]]


class _EmulatedKernel(Kernel):
    def __init__(self, module: Any) -> None:
        self._program = _linked(module)

    def outputs(self, count: int, *arrays: np.ndarray) -> list[np.ndarray]:
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            (folder / "arrays").write_bytes(struct.pack("<q", len(arrays)) + b"".join(map(_described, arrays)))
            (folder / "program").write_bytes(self._program)
            (folder / "program").chmod(0o700)
            # -cpu max: with all extensions that the emulator knows
            command = [_EMULATOR, "-cpu", "max", folder / "program", folder / "arrays", folder / "results"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"the kernel ended with {done.returncode} under {_EMULATOR}: {done.stderr}"
            results = (folder / "results").read_bytes()
        ends = np.cumsum([array.nbytes for array in arrays])
        return [
            np.frombuffer(results[end - array.nbytes : end], array.dtype).reshape(array.shape).copy()
            for array, end in list(zip(arrays, ends, strict=True))[-count:]
        ]


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
