"""Run a CUDA kernel on numpy arrays in the emulator, including its host code, which computes the grid."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import tirx
from tvm.tirx.build import codegen_build

from moec.simulators.cuda import EmulatedLaunch, emulated_library, schedule_threads, watch_arrays
from moec.simulators.cuda.device import emulated_device
from moec.simulators.cuda.tensor_map import encode_tensor_map
from moec.targets.cuda.device.driver import CUDA
from moec.targets.cuda.kernels.persistent_gemm import ENCODE_TENSOR_MAP
from moec.targets.cuda.pipeline import lowered_kernels

from ...guarded import guarded

_DEVICE = emulated_device()
tvm_ffi.register_global_func(ENCODE_TENSOR_MAP, encode_tensor_map, override=True)
_view = tvm_ffi.get_global_func("runtime.TVMTensorCreateView")
_tensor_in = ctypes.pythonapi.PyCapsule_GetPointer
_tensor_in.restype, _tensor_in.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
_KIND_OF_DEVICE = ctypes.sizeof(ctypes.c_void_p)
"""The offset of the kind of device in DLPack's tensor: after the address of the data."""
_LOOPS_STAY_LOOPS = {"tirx.UnrollLoop": {"explicit_unroll": 0}}


class Kernel:
    """A compiled kernel, ready to run in the emulator."""

    def __init__(self, host: Any, library: Any, *, watches: bool) -> None:
        self._host, self._library, self._watches = host, library, watches

    def __call__(self, *arrays: np.ndarray) -> np.ndarray:
        """Run the kernel; the last array is the output and is returned."""
        return self.outputs(1, *arrays)[0]

    def outputs(self, count: int, *arrays: np.ndarray) -> list[np.ndarray]:
        """Run the kernel; the last ``count`` arrays are outputs and are returned. The given arrays are not changed.

        The kernel runs twice on copies of the arrays. In the first run each copy begins right after an inaccessible
        page, in the second it ends right before one.
        """
        for before in (True, False):
            copies = [guarded(array, 1, before=before) for array in arrays]
            self.run_on(*map(over, copies))
        return [copy.copy() for copy in copies[-count:]]

    def run_on(self, *tensors: Any) -> None:
        """Run the kernel on tensors of the device, in place."""
        if self._watches:
            watch_arrays(self._library, [(t.data_ptr(), _DEVICE.fetch(t).nbytes) for t in tensors])
        self._host["kernel"](*tensors)

    @contextlib.contextmanager
    def scheduled(self, behind: Iterable[int] = (), seed: int = 0) -> Iterator[None]:
        """A context in which threads are scheduled as :func:`schedule_threads` says."""
        schedule_threads(self._library, behind, seed)
        try:
            yield
        finally:
            schedule_threads(self._library)


def over(array: np.ndarray) -> Any:
    """A tensor of the device over the array's memory, whatever its alignment."""
    if not array.size:
        return _DEVICE.place(array)
    capsule = array.view(f"u{array.itemsize}").__dlpack__()
    tensor = _tensor_in(capsule, b"dltensor")
    ctypes.c_int32.from_address(tensor + _KIND_OF_DEVICE).value = CUDA
    bits = tvm_ffi.from_dlpack(capsule, require_alignment=1)
    return _view(bits, tvm_ffi.Shape(array.shape), tvm_ffi.dtype(array.dtype.name), 0)


def build(kernel: tirx.PrimFunc, architecture: str = "sm_80", **options: Any) -> Kernel:
    """Compile a kernel for the emulator. ``options``: for :func:`emulated_library`."""
    host, device, source = _compiled(kernel, architecture)
    launches = [
        EmulatedLaunch(function.attrs["global_symbol"], tuple(map(str, function.attrs["tirx.kernel_launch_params"])))
        for function in device.functions.values()
    ]
    path = emulated_library(source, launches, architecture=architecture, soon_ready=True, **options)
    library = tvm_ffi.load_module(str(path))
    host.import_module(library)
    return Kernel(host, library, watches=bool(options.get("watch")))


def source_of(kernel: tirx.PrimFunc, architecture: str = "sm_80") -> str:
    """The kernel's CUDA C."""
    return _compiled(kernel, architecture)[2]


def _compiled(kernel: tirx.PrimFunc, architecture: str) -> tuple[Any, tvm.IRModule, str]:
    """The code for the host, the module of the device, and its CUDA C."""
    target = tvm.target.Target({"kind": "cuda", "arch": architecture}, host={"kind": "llvm"})
    module = tvm.IRModule({"kernel": kernel.with_attr("global_symbol", "kernel")})
    with tvm.transform.PassContext(config=_LOOPS_STAY_LOOPS):
        host, device = lowered_kernels(module, target)
    assert device is not None
    source = codegen_build(device, target).inspect_source()
    return codegen_build(host, target.host), device, source
