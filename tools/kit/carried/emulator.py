"""The emulator in place of a GPU: packed libraries whose functions run device code on the processor."""

from __future__ import annotations

import ctypes
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from moec.runtime.library import load_ffi
from moec.simulators.cuda.tensor_map import encode_tensor_map

_ALIGNMENT = 1024


class Emulator:
    """Stand-in for :class:`carried.gpu.KitGpu` with memory of the host; its times mean nothing."""

    emulated = True
    name = "an emulator"
    multiprocessors, capability = 132, "9.0"

    def __init__(self) -> None:
        self._memory: dict[int, np.ndarray] = {}
        self._libraries: dict[pathlib.Path, Any] = {}
        load_ffi()

    def memory(self, size: int) -> int:
        room = np.empty(size + _ALIGNMENT, np.uint8)
        address = room.ctypes.data + -room.ctypes.data % _ALIGNMENT
        self._memory[address] = room
        return int(address)

    def free(self, address: int) -> None:
        del self._memory[address]

    def write(self, address: int, data: bytes) -> None:
        ctypes.memmove(address, data, len(data))

    def clear(self, address: int, size: int, byte: int = 0) -> None:
        ctypes.memset(address, byte, size)

    def read(self, address: int, size: int) -> bytes:
        return ctypes.string_at(address, size)

    def finish(self) -> None:
        pass

    def registers(self, code: pathlib.Path, function: str) -> int:
        return 0

    def launch(
        self,
        code: pathlib.Path,
        function: str,
        arguments: Sequence[Sequence[Any]],
        launch: Mapping[str, int],
        *,
        begins_early: bool = False,
    ) -> None:
        path = code.with_suffix(".so")
        if path not in self._libraries:
            self._libraries[path] = load_ffi().load_module(str(path))
        kept: list[Any] = []  # tensor maps, until the launch has ended
        values = [_value(kind, value, kept) for kind, value in arguments]
        self._libraries[path][function](*values, *launch.values())

    def seconds(self, work: Callable[[], None]) -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    def captured(self, work: Callable[[], None]) -> Callable[[], None]:
        return work


def _value(kind: str, value: Any, kept: list[Any]) -> Any:
    if kind == "pointer":
        return ctypes.c_void_p(value)
    if kind != "map":
        return value
    room = np.zeros(256, np.uint8)
    address = room.ctypes.data + -room.ctypes.data % 64
    kept.append(room)
    encode_tensor_map(address, value["dtype"], value["rank"], value["address"], *value["numbers"])
    return ctypes.c_void_p(address)
