"""NVIDIA's driver: what GPUs there are, and runs that are captured as graphs and launched again.

The driver's library is the one part of CUDA that every machine with a GPU has, and its functions keep their meaning
under their names, so a few of them are called through ctypes.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import os
from typing import Any

from moec.common.once import once
from moec.errors import DefectError, MoecError
from moec.targets.cuda.device.errors import explain_gpu_error

CUDA = 2
"""DLPack's number for the memory of NVIDIA's GPUs."""
_LIBRARY = "nvcuda.dll" if os.name == "nt" else "libcuda.so.1"
_NO_DEVICE = 100
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # attributes of devices
_NAME_BYTES = 256
_NON_BLOCKING = 1
"""Streams that work on the default stream does not wait for; another cannot be captured beside such work."""
_RELAXED = 2
"""The mode of capture in which memory may be taken meanwhile, by this thread or another. It is not the graph's."""

_int_out, _handle_out = ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_void_p)
_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "cuInit": (ctypes.c_uint,),
    "cuDriverGetVersion": (_int_out,),
    "cuDeviceGetCount": (_int_out,),
    "cuDeviceGetName": (ctypes.c_char_p, ctypes.c_int, ctypes.c_int),
    "cuDeviceGetAttribute": (_int_out, ctypes.c_int, ctypes.c_int),
    "cuDeviceTotalMem_v2": (ctypes.POINTER(ctypes.c_size_t), ctypes.c_int),
    "cuDevicePrimaryCtxRetain": (_handle_out, ctypes.c_int),
    "cuCtxSetCurrent": (ctypes.c_void_p,),
    "cuStreamCreate": (_handle_out, ctypes.c_uint),
    "cuMemcpyHtoDAsync_v2": (ctypes.c_uint64, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p),
    "cuMemcpyDtoDAsync_v2": (ctypes.c_uint64, ctypes.c_uint64, ctypes.c_size_t, ctypes.c_void_p),
    "cuStreamBeginCapture_v2": (ctypes.c_void_p, ctypes.c_int),
    "cuStreamEndCapture": (ctypes.c_void_p, _handle_out),
    "cuGraphInstantiateWithFlags": (_handle_out, ctypes.c_void_p, ctypes.c_ulonglong),
    "cuGraphDestroy": (ctypes.c_void_p,),
    "cuGraphLaunch": (ctypes.c_void_p, ctypes.c_void_p),
    "cuGraphExecDestroy": (ctypes.c_void_p,),
    "cuGetErrorName": (ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)),
    "cuGetErrorString": (ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)),
}


@dataclasses.dataclass(frozen=True)
class GpuFacts:
    """One GPU. ``capability``: as the driver counts (``9.0``)."""

    name: str
    capability: str
    memory_bytes: int


class Driver:
    """The driver, ready to be called. Made by :func:`open_driver`. Streams, graphs and contexts are addresses."""

    def __init__(self, library: ctypes.CDLL) -> None:
        """Raises MoecError where the driver cannot start."""
        self._library = library
        for name, arguments in _ARGUMENTS.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, ctypes.c_int
        self._has_devices = self._start()

    @property
    def version(self) -> tuple[int, int]:
        """The version of CUDA that the driver supports."""
        found = self._number("cuDriverGetVersion")
        return found // 1000, found % 1000 // 10

    def gpus(self) -> list[GpuFacts]:
        """Those that this process may use."""
        if not self._has_devices:
            return []
        return [self._facts(index) for index in range(self._number("cuDeviceGetCount"))]

    def use_first_gpu(self) -> None:
        """Have the calling thread's next calls concern the first GPU, in the context that all of CUDA shares."""
        self._call("cuCtxSetCurrent", self._context)

    def new_stream(self) -> int:
        """A stream of its own, for captures."""
        return self._handle("cuStreamCreate", _NON_BLOCKING)

    def copy_from_host(self, target: int, source: int, size: int, stream: int) -> None:
        """``size`` bytes between addresses; ``source`` may change as soon as this returns, unless it is pinned."""
        self._call("cuMemcpyHtoDAsync_v2", target, source, size, stream)

    def copy_on_device(self, target: int, source: int, size: int, stream: int) -> None:
        """``size`` bytes between addresses."""
        self._call("cuMemcpyDtoDAsync_v2", target, source, size, stream)

    def begin_capture(self, stream: int) -> None:
        """From now on work that is put on the stream is written down and not done."""
        self._call("cuStreamBeginCapture_v2", stream, _RELAXED)

    def end_capture(self, stream: int) -> int:
        """The captured work as a graph to launch."""
        graph = self._handle("cuStreamEndCapture", stream, handle_first=False)
        try:
            return self._handle("cuGraphInstantiateWithFlags", graph, 0)
        finally:
            self._call("cuGraphDestroy", graph)

    def launch(self, graph: int, stream: int) -> None:
        """Put all the captured work on a stream."""
        self._call("cuGraphLaunch", graph, stream)

    def forget(self, graph: int) -> None:
        """Free a graph, once it has run."""
        self._call("cuGraphExecDestroy", graph)

    @functools.cached_property
    def _context(self) -> int:
        return self._handle("cuDevicePrimaryCtxRetain", 0)

    def _start(self) -> bool:
        """Whether there is a GPU."""
        result = self._library.cuInit(0)
        if result not in (0, _NO_DEVICE):
            raise self._error("cuInit", result)
        return bool(result == 0)

    def _facts(self, device: int) -> GpuFacts:
        name, memory = ctypes.create_string_buffer(_NAME_BYTES), ctypes.c_size_t()
        self._call("cuDeviceGetName", name, _NAME_BYTES, device)
        self._call("cuDeviceTotalMem_v2", ctypes.byref(memory), device)
        major, minor = (
            self._number("cuDeviceGetAttribute", which, device) for which in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR)
        )
        return GpuFacts(name.value.decode(errors="replace"), f"{major}.{minor}", memory.value)

    def _number(self, function: str, *arguments: Any) -> int:
        """What a function writes to the int that its first parameter points to."""
        number = ctypes.c_int()
        self._call(function, ctypes.byref(number), *arguments)
        return number.value

    def _handle(self, function: str, *arguments: Any, handle_first: bool = True) -> int:
        """What a function writes to the handle that its first, or else its last, parameter points to."""
        handle = ctypes.c_void_p()
        target = (ctypes.byref(handle),)
        self._call(function, *(target + arguments if handle_first else arguments + target))
        return handle.value or 0

    def _call(self, function: str, *arguments: Any) -> None:
        result = getattr(self._library, function)(*arguments)
        if result:
            raise self._error(function, result)

    def _error(self, function: str, result: int) -> MoecError:
        texts = []
        for source in ("cuGetErrorName", "cuGetErrorString"):
            text = ctypes.c_char_p()
            if getattr(self._library, source)(result, ctypes.byref(text)) == 0 and text.value:
                texts.append(text.value.decode(errors="replace"))
        message = f"NVIDIA's driver: {function}: {': '.join(texts) or f'CUDA error {result}'}"
        return explain_gpu_error(message) or DefectError(message)


@once
def open_driver() -> Driver:
    """The driver of this machine. Raises MoecError where there is none or it cannot start."""
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise MoecError(f"NVIDIA's driver is not installed ({error})") from error
    try:
        return Driver(library)
    except AttributeError as error:  # a function is missing
        raise MoecError(f"NVIDIA's driver is too old ({error}); install a newer one") from error
