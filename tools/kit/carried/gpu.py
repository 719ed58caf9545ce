"""A GPU through its driver's library alone: memory, launches of packed device code, tensor maps, graphs and events."""

from __future__ import annotations

import ctypes
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_SHARED_BYTES, _REGISTERS = 8, 4  # attributes of functions
_MULTIPROCESSORS, _MAJOR, _MINOR = 16, 75, 76  # attributes of devices
_CLUSTER, _EARLY = 4, 6  # attributes of launches
_MAP_TYPES = {
    "uint8": 0, "int8": 0, "uint16": 1, "uint32": 2, "int32": 3, "uint64": 4, "int64": 5, "float16": 6, "float32": 7,
    "float64": 8, "bfloat16": 9, "float8_e4m3fn": 0, "float8_e5m2": 0,
}  # fmt: skip
"""The driver's numbers of the element types of tensor maps."""
_MAP_BYTES, _MAP_ALIGNMENT = 128, 64
_NUMBERS = {
    "int32": ctypes.c_int32,
    "int64": ctypes.c_int64,
    "uint32": ctypes.c_uint32,
    "uint64": ctypes.c_uint64,
    "float32": ctypes.c_float,
}
_RELAXED = 2


class DriverError(Exception):
    """A call of the driver that failed."""


class LaunchAttribute(ctypes.Structure):
    """``CUlaunchAttribute``, with the first 12 bytes of its value."""

    _fields_ = (
        ("id", ctypes.c_int),
        ("pad", ctypes.c_int),
        ("x", ctypes.c_uint),
        ("y", ctypes.c_uint),
        ("z", ctypes.c_uint),
        ("rest", ctypes.c_uint * 13),
    )


class LaunchConfig(ctypes.Structure):
    """``CUlaunchConfig``."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(LaunchAttribute)),
        ("count", ctypes.c_uint),
    )


class KitGpu:
    """The first GPU. Raises DriverError from any method. Addresses, functions and graphs are numbers."""

    emulated = False

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise DriverError(f"no driver: {error}") from error
        self._call("cuInit", ctypes.c_uint(0))
        device = self._out(ctypes.c_int, "cuDeviceGet", ctypes.c_int(0))
        self._device = ctypes.c_int(device)
        self._call("cuCtxSetCurrent", self._handle("cuDevicePrimaryCtxRetain", self._device))
        self._stream = self._handle("cuStreamCreate", ctypes.c_uint(1))
        self._modules: dict[pathlib.Path, ctypes.c_void_p] = {}
        self._functions: dict[tuple[pathlib.Path, str], ctypes.c_void_p] = {}
        name = ctypes.create_string_buffer(256)
        self._call("cuDeviceGetName", name, ctypes.c_int(len(name)), self._device)
        version = self._out(ctypes.c_int, "cuDriverGetVersion")
        major, minor = (self._attribute(which) for which in (_MAJOR, _MINOR))
        self.multiprocessors = self._attribute(_MULTIPROCESSORS)
        self.capability = f"{major}.{minor}"
        self.name = f"{name.value.decode(errors='replace')}, compute capability {self.capability}, "
        self.name += f"{self.multiprocessors} multiprocessors, driver for CUDA {version // 1000}.{version % 1000 // 10}"

    def memory(self, size: int) -> int:
        """Allocate bytes and return their address."""
        return int(self._out(ctypes.c_uint64, "cuMemAlloc_v2", ctypes.c_size_t(max(size, 1))))

    def free(self, address: int) -> None:
        self._call("cuMemFree_v2", ctypes.c_uint64(address))

    def write(self, address: int, data: bytes) -> None:
        """Copy bytes from the host, in the order of launches. The driver has them when this returns."""
        if data:
            arguments = ctypes.c_uint64(address), data, ctypes.c_size_t(len(data)), self._stream
            self._call("cuMemcpyHtoDAsync_v2", *arguments)
            self.finish()

    def clear(self, address: int, size: int, byte: int = 0) -> None:
        """Set bytes, in the order of launches."""
        if size:
            arguments = ctypes.c_uint64(address), ctypes.c_ubyte(byte), ctypes.c_size_t(size), self._stream
            self._call("cuMemsetD8Async", *arguments)

    def read(self, address: int, size: int) -> bytes:
        """Wait for all work and copy bytes to the host."""
        self.finish()
        data = ctypes.create_string_buffer(max(size, 1))
        if size:
            self._call("cuMemcpyDtoH_v2", data, ctypes.c_uint64(address), ctypes.c_size_t(size))
        return data.raw[:size]

    def finish(self) -> None:
        self._call("cuStreamSynchronize", self._stream)

    def registers(self, code: pathlib.Path, function: str) -> int:
        return int(
            self._out(ctypes.c_int, "cuFuncGetAttribute", ctypes.c_int(_REGISTERS), self._function(code, function))
        )

    def launch(
        self,
        code: pathlib.Path,
        function: str,
        arguments: Sequence[Sequence[Any]],
        launch: Mapping[str, int],
        *,
        begins_early: bool = False,
    ) -> None:
        """Launch a function. ``arguments``: pairs of a type and a value, with tensor maps as numbers; ``launch``: TVM's
        tags and their values."""
        extents = [
            [launch.get(f"{what}.{axis}", 1) for axis in "xyz"] for what in ("blockIdx", "threadIdx", "clusterCtaIdx")
        ]
        grid, block, cluster = extents
        shared = launch.get("tirx.use_dyn_shared_memory", 0)
        attributes = []
        if cluster != [1, 1, 1]:
            attributes.append(LaunchAttribute(_CLUSTER, 0, *cluster))
        if begins_early:
            attributes.append(LaunchAttribute(_EARLY, 0, 1))
        listed = (LaunchAttribute * max(len(attributes), 1))(*attributes)
        config = LaunchConfig(
            (ctypes.c_uint * 3)(*grid),
            (ctypes.c_uint * 3)(*block),
            shared,
            self._stream,
            listed,
            len(attributes),
        )
        kernel = self._function(code, function)
        if shared:
            self._call("cuFuncSetAttribute", kernel, ctypes.c_int(_SHARED_BYTES), ctypes.c_int(shared))
        values = [self._value(kind, value) for kind, value in arguments]
        addresses = (ctypes.c_void_p * max(len(values), 1))(*[ctypes.addressof(value) for value in values])
        self._call("cuLaunchKernelEx", ctypes.byref(config), kernel, addresses, None)

    def seconds(self, work: Callable[[], None]) -> float:
        """Time work on the device by events."""
        start, end = (self._handle("cuEventCreate", ctypes.c_uint(0)) for _ in range(2))
        self._call("cuEventRecord", start, self._stream)
        work()
        self._call("cuEventRecord", end, self._stream)
        self._call("cuEventSynchronize", end)
        milliseconds = self._out(ctypes.c_float, "cuEventElapsedTime_v2", start, end)
        for event in (start, end):
            self._call("cuEventDestroy_v2", event)
        return float(milliseconds) / 1e3

    def captured(self, work: Callable[[], None]) -> Callable[[], None]:
        """Capture work as a graph and return the function that launches it."""
        self.finish()
        self._call("cuStreamBeginCapture_v2", self._stream, ctypes.c_int(_RELAXED))
        try:
            work()
        finally:
            graph = ctypes.c_void_p()
            ended = self._library.cuStreamEndCapture(self._stream, ctypes.byref(graph))
        self._check("cuStreamEndCapture", ended)
        launchable = self._handle("cuGraphInstantiateWithFlags", graph, ctypes.c_ulonglong(0))
        return lambda: self._call("cuGraphLaunch", launchable, self._stream)

    def _value(self, kind: str, value: Any) -> Any:
        """The argument in memory of its own."""
        if kind == "pointer":
            return ctypes.c_void_p(value)
        return self._tensor_map(value) if kind == "map" else _NUMBERS[kind](value)

    def _tensor_map(self, value: Mapping[str, Any]) -> Any:
        rank, numbers = value["rank"], value["numbers"]
        room = ctypes.create_string_buffer(_MAP_BYTES + _MAP_ALIGNMENT)
        offset = -ctypes.addressof(room) % _MAP_ALIGNMENT
        tensor_map = (ctypes.c_char * _MAP_BYTES).from_buffer(room, offset)
        lists, rest = [], list(numbers)
        for element, count in (
            (ctypes.c_uint64, rank),
            (ctypes.c_uint64, rank - 1),
            (ctypes.c_uint32, rank),
            (ctypes.c_uint32, rank),
        ):
            lists.append((element * max(count, 1))(*rest[:count]))
            del rest[:count]
        head = (
            tensor_map,
            ctypes.c_int(_MAP_TYPES[value["dtype"]]),
            ctypes.c_uint32(rank),
            ctypes.c_void_p(value["address"]),
        )
        self._call("cuTensorMapEncodeTiled", *head, *lists, *map(ctypes.c_int, rest))
        return tensor_map

    def _function(self, code: pathlib.Path, function: str) -> ctypes.c_void_p:
        if code not in self._modules:
            self._modules[code] = self._handle("cuModuleLoadData", code.read_bytes())
        if (code, function) not in self._functions:
            handle = self._handle("cuModuleGetFunction", self._modules[code], function.encode())
            self._functions[code, function] = handle
        return self._functions[code, function]

    def _attribute(self, which: int) -> int:
        return int(self._out(ctypes.c_int, "cuDeviceGetAttribute", ctypes.c_int(which), self._device))

    def _out(self, kind: Any, function: str, *arguments: Any) -> Any:
        """Call a function whose first parameter points to its result."""
        result = kind()
        self._call(function, ctypes.byref(result), *arguments)
        return result.value

    def _handle(self, function: str, *arguments: Any) -> ctypes.c_void_p:
        result = ctypes.c_void_p()
        self._call(function, ctypes.byref(result), *arguments)
        return result

    def _call(self, function: str, *arguments: Any) -> None:
        self._check(function, getattr(self._library, function)(*arguments))

    def _check(self, function: str, result: int) -> None:
        if result:
            text = ctypes.c_char_p()
            self._library.cuGetErrorName(ctypes.c_int(result), ctypes.byref(text))
            raise DriverError(f"{function}: {(text.value or b'unknown error').decode()} ({result})")
