"""NVIDIA's driver: the GPUs of this machine, and runs that are captured as graphs and launched again.

The driver's library is the one part of CUDA that every machine with a GPU has, and its functions are stable across
versions. So moec calls the few that it needs through ctypes.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import os
from collections.abc import Iterator
from typing import Any

from moec.common.errors import DefectError, MoecError
from moec.common.once import once
from moec.targets.cuda.device.errors import explain_gpu_error

CUDA = 2
"""DLPack's number for the memory of NVIDIA's GPUs."""
_LIBRARY = "nvcuda.dll" if os.name == "nt" else "libcuda.so.1"
_NO_DEVICE = 100
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # attributes of devices
_NAME_BYTES = 256
_NON_BLOCKING = 1
"""Flag of a stream that does not synchronise with the default stream. Without it, a stream cannot be captured while the
default stream has work."""
_RELAXED = 2
"""Mode of a capture during which this or another thread may allocate memory; such allocations are not part of the
graph."""

_NO_CAPTURE = 0
_NO_TIMING = 2
"""Flag of an event that only orders work, which costs less."""

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
    "cuStreamIsCapturing": (ctypes.c_void_p, _int_out),
    "cuThreadExchangeStreamCaptureMode": (_int_out,),
    "cuEventCreate": (_handle_out, ctypes.c_uint),
    "cuEventRecord": (ctypes.c_void_p, ctypes.c_void_p),
    "cuEventSynchronize": (ctypes.c_void_p,),
    "cuEventDestroy_v2": (ctypes.c_void_p,),
    "cuMemHostAlloc": (_handle_out, ctypes.c_size_t, ctypes.c_uint),
    "cuMemFreeHost": (ctypes.c_void_p,),
    "cuMemGetInfo_v2": (ctypes.POINTER(ctypes.c_size_t), ctypes.POINTER(ctypes.c_size_t)),
    "cuMemcpyDtoHAsync_v2": (ctypes.c_void_p, ctypes.c_uint64, ctypes.c_size_t, ctypes.c_void_p),
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
    """One GPU. ``capability``: its compute capability as the driver numbers it (``9.0``)."""

    name: str
    capability: str
    memory_bytes: int


class Driver:
    """The initialised driver. Made by :func:`open_driver`. Streams, graphs and contexts are addresses."""

    def __init__(self, library: ctypes.CDLL) -> None:
        """Raises MoecError if the driver cannot be initialised."""
        self._library = library
        for name, arguments in _ARGUMENTS.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, ctypes.c_int
        self._has_devices = self._start()

    @property
    def version(self) -> tuple[int, int]:
        """The version of CUDA that the driver supports."""
        version = self._number("cuDriverGetVersion")
        return version // 1000, version % 1000 // 10

    def gpus(self) -> list[GpuFacts]:
        """The GPUs that this process may use (see CUDA_VISIBLE_DEVICES)."""
        if not self._has_devices:
            return []
        return [self._facts(index) for index in range(self._number("cuDeviceGetCount"))]

    def use_first_gpu(self) -> None:
        """Select the first GPU for the calling thread, in the primary context, which all users of CUDA share."""
        self._call("cuCtxSetCurrent", self._context)

    def new_stream(self) -> int:
        """Create a stream for captures."""
        return self._handle("cuStreamCreate", _NON_BLOCKING)

    def copy_from_host(self, target: int, source: int, size: int, stream: int) -> None:
        """Copy ``size`` bytes from an address of the host to one of the device. ``source`` may change as soon as this
        returns, unless its memory is pinned."""
        self._call("cuMemcpyHtoDAsync_v2", target, source, size, stream)

    def copy_on_device(self, target: int, source: int, size: int, stream: int) -> None:
        """Copy ``size`` bytes between addresses of the device."""
        self._call("cuMemcpyDtoDAsync_v2", target, source, size, stream)

    def copy_to_host(self, target: int, source: int, size: int, stream: int) -> None:
        """Copy ``size`` bytes from an address of the device to one of pinned memory."""
        self._call("cuMemcpyDtoHAsync_v2", target, source, size, stream)

    def new_pinned(self, size: int) -> int:
        """Allocate pinned memory of the host, which the device reads and writes without another copy."""
        return self._handle("cuMemHostAlloc", size, 0)

    def free_pinned(self, address: int) -> None:
        self._call("cuMemFreeHost", address)

    def new_event(self) -> int:
        return self._handle("cuEventCreate", _NO_TIMING)

    def record_event(self, event: int, stream: int) -> None:
        """Let the event happen after the present work on the stream."""
        self._call("cuEventRecord", event, stream)

    def finish_event(self, event: int) -> None:
        """Wait until the event has happened."""
        self._call("cuEventSynchronize", event)

    def free_event(self, event: int) -> None:
        self._call("cuEventDestroy_v2", event)

    def free_memory(self) -> int:
        """Bytes of the first GPU that no program uses."""
        self.use_first_gpu()
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value

    def is_capturing(self, stream: int) -> bool:
        """Whether work put on the stream is recorded instead of executed."""
        status = ctypes.c_int()
        self._call("cuStreamIsCapturing", stream, ctypes.byref(status))
        return status.value != _NO_CAPTURE

    @contextlib.contextmanager
    def relaxed(self) -> Iterator[None]:
        """Context in which the calling thread may allocate memory although a stream is being captured."""
        mode = ctypes.c_int(_RELAXED)
        self._call("cuThreadExchangeStreamCaptureMode", ctypes.byref(mode))
        try:
            yield
        finally:
            self._call("cuThreadExchangeStreamCaptureMode", ctypes.byref(mode))

    def begin_capture(self, stream: int) -> None:
        """Begin to record the work put on the stream instead of executing it."""
        self._call("cuStreamBeginCapture_v2", stream, _RELAXED)

    def end_capture(self, stream: int) -> int:
        """End the capture and return the recorded work as a graph that can be launched."""
        graph = self._handle("cuStreamEndCapture", stream, handle_first=False)
        try:
            return self._handle("cuGraphInstantiateWithFlags", graph, 0)
        finally:
            self._call("cuGraphDestroy", graph)

    def launch(self, graph: int, stream: int) -> None:
        """Launch a graph's work on a stream."""
        self._call("cuGraphLaunch", graph, stream)

    def forget(self, graph: int) -> None:
        """Free a graph. If it is running, the driver frees it afterwards."""
        self._call("cuGraphExecDestroy", graph)

    @functools.cached_property
    def _context(self) -> int:
        return self._handle("cuDevicePrimaryCtxRetain", 0)

    def _start(self) -> bool:
        """Initialise the driver; return whether there is a GPU."""
        result = self._library.cuInit(0)
        if result not in (0, _NO_DEVICE):
            raise self._error("cuInit", result)
        return bool(result == 0)

    def _facts(self, device: int) -> GpuFacts:
        name, memory = ctypes.create_string_buffer(_NAME_BYTES), ctypes.c_size_t()
        self._call("cuDeviceGetName", name, _NAME_BYTES, device)
        self._call("cuDeviceTotalMem_v2", ctypes.byref(memory), device)
        major, minor = (
            self._number("cuDeviceGetAttribute", number, device) for number in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR)
        )
        return GpuFacts(name.value.decode(errors="replace"), f"{major}.{minor}", memory.value)

    def _number(self, function: str, *arguments: Any) -> int:
        """Call a function whose first parameter points to an int for its result, and return that result."""
        number = ctypes.c_int()
        self._call(function, ctypes.byref(number), *arguments)
        return number.value

    def _handle(self, function: str, *arguments: Any, handle_first: bool = True) -> int:
        """Call a function whose first (or last) parameter points to a handle for its result, and return that result."""
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
    """The driver of this machine. Raises MoecError if it is missing, too old, or cannot be initialised."""
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise MoecError(f"NVIDIA's driver is not installed ({error})") from error
    try:
        return Driver(library)
    except AttributeError as error:  # a function is missing
        raise MoecError(f"NVIDIA's driver is too old ({error}); install a newer one") from error
