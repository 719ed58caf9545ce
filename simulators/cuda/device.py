"""The emulator as a device of the runtime, which runs programs for a GPU unchanged on the processor."""

from __future__ import annotations

import functools
from typing import Any

from moec.common.once import once
from moec.runtime.device_module import DeviceModule
from moec.runtime.library import load_ffi
from moec.simulators.cuda.launch import EmulatedLaunch
from moec.simulators.cuda.library import ROOMIEST, emulated_library
from moec.simulators.cuda.tensor_map import encode_tensor_map
from moec.targets.cuda.device.driver import CUDA
from moec.targets.cuda.device.gpu import CudaGpu

_DEVICE_API, _HOST_API = "device_api.cuda", "device_api.cpu"
_ENCODE_TENSOR_MAP = "runtime.cuTensorMapEncodeTiled"
_DEVICE_ATTRIBUTE, _MULTIPROCESSOR_COUNT = "runtime.GetDeviceAttr", 7
_MULTIPROCESSORS = 2
"""The reported number of multiprocessors: few, so that blocks that share tiles among them have several each."""


def emulated_device(architecture: str | None = None) -> CudaGpu:
    """A GPU whose memory is the host's and whose kernels are emulated. It replaces a real GPU for the whole process.
    ``architecture``: whose limits apply; by default one with the most shared memory.

    Loading a program raises UnsupportedError and MoecError as
    :func:`~moec.simulators.cuda.library.emulated_library`.
    """
    ffi = load_ffi()
    host = ffi.get_global_func(_HOST_API)()
    ffi.register_global_func(_DEVICE_API, lambda: host, override=True)
    ffi.register_global_func(_ENCODE_TENSOR_MAP, encode_tensor_map, override=True)
    _emulate_attributes(ffi)
    return CudaGpu(functools.partial(_load, architecture or ROOMIEST), architecture=architecture)


@once
def _emulate_attributes(ffi: Any) -> None:
    attribute_of = ffi.get_global_func(_DEVICE_ATTRIBUTE)

    def emulated(kind: int, device: int, attribute: int) -> Any:
        if (kind, attribute) == (CUDA, _MULTIPROCESSOR_COUNT):
            return _MULTIPROCESSORS
        return attribute_of(kind, device, attribute)

    ffi.register_global_func(_DEVICE_ATTRIBUTE, emulated, override=True)


def _load(architecture: str, module: DeviceModule) -> Any:
    launches = [EmulatedLaunch(kernel.name, kernel.launch) for kernel in module.kernels]
    library = emulated_library(module.code.decode(), launches, architecture=architecture)
    return load_ffi().load_module(str(library))
