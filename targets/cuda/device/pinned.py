"""Copies between arrays and a GPU through pinned memory that stays: one copy for all arrays of a run.

From memory that is not pinned the driver first copies to a buffer of its own, and waits. Memory here grows in steps of
an eighth of its size, so that runs of many sizes end up with the same block.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from moec.common.errors import MoecError
from moec.runtime.library import load_ffi
from moec.runtime.streams import Streams
from moec.runtime.tensors import from_address, new_tensor, tensor_at
from moec.targets.cuda.device.driver import CUDA, Driver

_ALIGNMENT = 256
_SMALLEST = 4096
MOST_PINNED = 64 << 20
"""Bytes that are copied through pinned memory at once; more memory of the host would be lost to other programs."""


def stepped(size: int) -> int:
    """Round a number of bytes up to one of eight steps between powers of two."""
    step = max(_SMALLEST, 1 << max(0, (size - 1).bit_length() - 4))
    return max(_SMALLEST, -(-size // step) * step)


def _layout(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Aligned places for arrays of these numbers of bytes, and the bytes of all."""
    places, end = [], 0
    for size in sizes:
        places.append(end)
        end += -(-size // _ALIGNMENT) * _ALIGNMENT
    return places, end


class PinnedMemory:
    """Pinned memory of the host that grows, and the last copy that used it."""

    def __init__(self, driver: Driver) -> None:
        self._driver, self._address, self._size = driver, 0, 0
        self._event: int | None = None

    def taken(self, size: int) -> tuple[int, np.ndarray]:
        """Wait for the last copy, and return an address with ``size`` bytes or more, and these bytes."""
        if self._event is not None:
            self._driver.finish_event(self._event)
        if size > self._size:
            self._free()
            self._size = stepped(size)
            self._address = self._driver.new_pinned(self._size)
        return self._address, from_address(self._address, self._size)[:size]

    def used_by(self, stream: int) -> None:
        """Note that work submitted to the stream so far uses the memory."""
        if self._event is None:
            self._event = self._driver.new_event()
        self._driver.record_event(self._event, stream)

    def _free(self) -> None:
        if self._address:
            self._driver.free_pinned(self._address)
            self._address = self._size = 0

    def __del__(self, is_ending: Callable[[], bool] = sys.is_finalizing) -> None:
        if is_ending():  # the process gives all memory back, and names of modules may be gone
            return
        with contextlib.suppress(MoecError):  # the driver may have ended before
            if self._event is not None:
                self._driver.finish_event(self._event)
                self._driver.free_event(self._event)
            self._free()


class InputBlock:
    """Arrays of the host on the device, in one block that the next arrays overwrite in the order of the streams."""

    def __init__(self, driver: Driver, streams: Streams) -> None:
        self._driver, self._streams, self._host = driver, streams, PinnedMemory(driver)
        self._block: Any = None
        self._size = 0
        self._views: dict[tuple[Any, ...], list[Any]] = {}
        """Tensors of the last run, by their shapes and types."""

    def place(self, arrays: Sequence[np.ndarray]) -> list[Any]:
        """Copy the arrays to the block, in the order of the current stream, and return the runtime's tensors there."""
        places, size = _layout([array.nbytes for array in arrays])
        if self._block is None or size > self._size:
            self._size = stepped(size)
            self._block, self._views = new_tensor((self._size,), load_ffi().dtype("uint8"), CUDA), {}
        if size:
            self._copy(arrays, places, size)
        key = tuple((array.shape, array.dtype) for array in arrays)
        if key not in self._views:
            self._views = {key: [*map(self._at, places, arrays)]}
        return self._views[key]

    def _at(self, place: int, array: np.ndarray) -> Any:
        return tensor_at(self._block.data_ptr() + place, array.shape, array.dtype, CUDA, self._block)

    def _copy(self, arrays: Sequence[np.ndarray], places: Sequence[int], size: int) -> None:
        address, memory = self._host.taken(size)
        for array, place in zip(arrays, places, strict=True):
            memory[place : place + array.nbytes].view(array.dtype).reshape(array.shape)[...] = array
        stream = self._streams.current()
        self._driver.copy_from_host(self._block.data_ptr(), address, size, stream)
        self._host.used_by(stream)


class OutputBlock:
    """The way of tensors on the device to the host."""

    def __init__(self, driver: Driver, streams: Streams) -> None:
        self._driver, self._streams, self._host = driver, streams, PinnedMemory(driver)

    def fetch(self, tensors: Sequence[Any], types: Sequence[np.dtype]) -> list[np.ndarray]:
        """Copy the tensors to arrays of the caller, after all earlier work on the current stream."""
        arrays = [np.empty(tuple(tensor.shape), dtype) for tensor, dtype in zip(tensors, types, strict=True)]
        places, size = _layout([array.nbytes for array in arrays])
        if not size:
            return arrays
        address, memory = self._host.taken(size)
        stream = self._streams.current()
        for tensor, array, place in zip(tensors, arrays, places, strict=True):
            if array.nbytes:
                self._driver.copy_to_host(address + place, tensor.data_ptr(), array.nbytes, stream)
        self._streams.finish(stream)
        for array, place in zip(arrays, places, strict=True):
            array[...] = memory[place : place + array.nbytes].view(array.dtype).reshape(array.shape)
        return arrays
