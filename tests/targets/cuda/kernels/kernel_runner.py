"""Runs a kernel for CUDA on numpy arrays, in the emulator. Its code for the host, which computes the grid, runs too."""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import tirx
from tvm.tirx.build import codegen_build, split_host_device_mods

from moec.targets.cuda.emulator import Launch, emulated_library, watch_arrays
from moec.targets.cuda.emulator.device import emulated_device
from moec.targets.cuda.emulator.tensor_map import encode_tensor_map
from moec.targets.cuda.kernels.grouped_gemm_wgmma import ENCODE_TENSOR_MAP
from moec.targets.cuda.pipeline import KERNEL_PIPELINE

_DEVICE = emulated_device()
tvm_ffi.register_global_func(ENCODE_TENSOR_MAP, encode_tensor_map, override=True)
_LOOPS_STAY_LOOPS = {"tirx.UnrollLoop": {"explicit_unroll": 0}}


class Kernel:
    """A compiled kernel."""

    def __init__(self, host: Any, watching: Any) -> None:
        """``watching``: the library, where accesses are watched."""
        self._host, self._watching = host, watching

    def __call__(self, *arrays: np.ndarray) -> np.ndarray:
        """Run it; the last array is the output and is returned."""
        return self.outputs(1, *arrays)[0]

    def outputs(self, count: int, *arrays: np.ndarray) -> list[np.ndarray]:
        """Run it; the last ``count`` arrays are outputs and are returned. The given arrays are not changed."""
        tensors = [_DEVICE.place(array.copy()) for array in arrays]
        self.run_on(*tensors)
        return [_DEVICE.fetch(tensor).copy() for tensor in tensors[-count:]]

    def run_on(self, *tensors: Any) -> None:
        """Run it on tensors of the device, in their place."""
        if self._watching is not None:
            watch_arrays(self._watching, [(t.data_ptr(), _DEVICE.fetch(t).nbytes) for t in tensors])
        self._host["kernel"](*tensors)


def build(kernel: tirx.PrimFunc, architecture: str = "sm_80", **options: Any) -> Kernel:
    """The kernel, ready to run in the emulator; ``options`` are those of :func:`emulated_library`."""
    host, device, source = _compiled(kernel, architecture)
    launches = [
        Launch(function.attrs["global_symbol"], tuple(map(str, function.attrs["tirx.kernel_launch_params"])))
        for function in device.functions.values()
    ]
    library = tvm_ffi.load_module(str(emulated_library(source, launches, architecture=architecture, **options)))
    host.import_module(library)
    return Kernel(host, library if options.get("watch") else None)


def source_of(kernel: tirx.PrimFunc, architecture: str = "sm_80") -> str:
    """The kernel's CUDA C."""
    return _compiled(kernel, architecture)[2]


def _compiled(kernel: tirx.PrimFunc, architecture: str) -> tuple[Any, tvm.IRModule, str]:
    """The code for the host, the module of the device, and its CUDA C."""
    target = tvm.target.Target({"kind": "cuda", "arch": architecture}, host={"kind": "llvm"})
    module = tvm.IRModule({"kernel": kernel.with_attr("global_symbol", "kernel")})
    phases, finish_host, finish_device = tvm.tirx.get_tir_pipeline(KERNEL_PIPELINE)
    with tvm.transform.PassContext(config=_LOOPS_STAY_LOOPS):
        lowered = phases(tirx.transform.BindTarget(target)(module))
    host, devices = split_host_device_mods(lowered)
    ((device_target, device),) = devices.items()
    device = finish_device()(device)
    source = codegen_build(device, device_target).inspect_source()
    return codegen_build(finish_host()(host), target.host), device, source
