"""The emulator as a device of the runtime, which runs programs for a GPU unchanged on the processor."""

from __future__ import annotations

import functools
from typing import Any

from moec.runtime.device_module import DeviceModule
from moec.runtime.library import load_ffi
from moec.simulators.cuda.driver import emulated_driver, launch_recorder
from moec.simulators.cuda.launch import EmulatedLaunch
from moec.simulators.cuda.library import ROOMIEST, emulated_library
from moec.simulators.cuda.tensor_map import encode_tensor_map
from moec.targets.cuda.device.gpu import CudaGpu

_ENCODE_TENSOR_MAP = "runtime.cuTensorMapEncodeTiled"


def emulated_device(architecture: str | None = None) -> CudaGpu:
    """A GPU whose memory is the host's and whose kernels are emulated. It replaces a real GPU for the whole process.
    ``architecture``: whose limits apply; by default one with the most shared memory.

    Raises MoecError where there is no g++. Loading a program raises UnsupportedError and MoecError as
    :func:`~moec.simulators.cuda.library.emulated_library`.
    """
    load_ffi().register_global_func(_ENCODE_TENSOR_MAP, encode_tensor_map, override=True)
    load = functools.partial(_load, architecture or ROOMIEST)
    return CudaGpu(load, emulated_driver(), architecture, is_emulated=True)


def _load(architecture: str, module: DeviceModule) -> Any:
    launches = [EmulatedLaunch(kernel.name, kernel.launch) for kernel in module.kernels]
    library = emulated_library(module.code.decode(), launches, architecture=architecture)
    loaded = load_ffi().load_module(str(library))
    loaded["record_by"](launch_recorder())
    return loaded
