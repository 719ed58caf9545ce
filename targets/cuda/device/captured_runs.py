"""CUDA graphs: a run is captured once for each set of input sizes, and launched as a whole from then on.

With few tokens a kernel takes a few microseconds, and so does launching it; a graph needs one launch for all kernels. A
captured run reads and writes at the addresses that it had at capture. Inputs are therefore copied to memory of the
graph, and results are read from it. Memory that the program keeps from run to run, such as the pages of a session, is
read where it lies, so its addresses are part of what has to repeat.

A set of sizes is captured when it comes the second time, so sizes that never come again cost nothing. Just before the
capture the run is executed once more, which loads its code and allocates its memory. The graph keeps all memory that
the captured run allocated, even what the run freed again, because the next launch writes there.
"""

from __future__ import annotations

import collections
import contextlib
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from moec.common.errors import UnsupportedError
from moec.common.once import once
from moec.runtime.library import load_ffi
from moec.runtime.on_device import OnDevice
from moec.runtime.program import LoadedProgram
from moec.runtime.streams import Streams
from moec.runtime.tensors import new_tensor
from moec.targets.cuda.device.driver import CUDA, Driver
from moec.targets.cuda.device.pinned import InputBlock

_MOST = 32
"""The largest number of graphs of an owner, since each keeps memory. Beyond it, the least recently used one is
freed."""

_MOST_SEEN = 1024
"""The largest number of sizes that are remembered for an owner."""

Key = tuple[Any, ...]


@once
def _capturing() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "moec-capture")


class _Captured:
    """A captured run. ``arguments`` and ``outputs``: what the program took and returned, at the addresses that the
    graph uses; ``memory``: references that keep the graph's memory from being reused by other runs."""

    def __init__(self, driver: Driver, streams: Streams, arguments: Sequence[Any]) -> None:
        self._driver, self._streams, self._block = driver, streams, InputBlock(driver, streams)
        self.graph = 0
        self.outputs: list[Any] = []
        self.memory: list[Any] = []
        self._own: list[Any] = [
            new_tensor(value.shape, load_ffi().dtype(value.dtype.name), CUDA) if isinstance(value, OnDevice) else None
            for value in arguments
        ]
        self.arguments = self.fill(arguments)

    def fill(self, arguments: Sequence[Any]) -> list[Any]:
        """Copy the arrays among the arguments of a run to the graph's memory. Returns the arguments there."""
        placed = iter(self._block.place([value for value in arguments if isinstance(value, np.ndarray)]))
        filled = []
        for value, own in zip(arguments, self._own, strict=True):
            if isinstance(value, OnDevice) and value.nbytes:
                address, stream = value.tensor.data_ptr(), self._streams.current()
                self._driver.copy_on_device(own.data_ptr(), address, value.nbytes, stream)
            filled.append(next(placed) if isinstance(value, np.ndarray) else value if own is None else own)
        return filled


class _Graphs:
    """The captured runs of one owner by their keys, and the keys of runs that came once."""

    def __init__(self) -> None:
        self.captured: collections.OrderedDict[Key, _Captured] = collections.OrderedDict()
        self._seen: dict[Key, None] = {}

    def is_first(self, key: Key) -> bool:
        """Whether the key was not there before; from now on it is."""
        if key in self._seen:
            return False
        if len(self._seen) == _MOST_SEEN:
            self._seen = dict.fromkeys(self.captured)
        self._seen[key] = None
        return True

    def add(self, key: Key, captured: _Captured) -> None:
        """Keep a captured run, and free the one that was not used for the longest if there are too many."""
        self.captured[key] = captured
        if len(self.captured) > _MOST:
            oldest, _ = self.captured.popitem(last=False)
            del self._seen[oldest]


class CapturedGraphs:
    """The captured runs of one program, with ``weights`` as they are at capture. Not thread-safe."""

    def __init__(self, program: LoadedProgram, weights: Sequence[Any], driver: Driver, streams: Streams) -> None:
        """Raises UnsupportedError for a program that cannot be captured, because its host part waits for the GPU."""
        if program.waits:
            raise UnsupportedError(
                f"{program.where}: cannot be captured as a CUDA graph: the host reads what the GPU computed while it "
                f"runs ({', '.join(program.waits)}), such as sizes that depend on data; load it without cuda_graphs"
            )
        self._program, self._weights = program, weights
        self._driver, self._streams = driver, streams
        self._stream: int | None = None
        self._graphs: weakref.WeakKeyDictionary[Any, _Graphs] = weakref.WeakKeyDictionary()

    def replay(self, arguments: Sequence[Any], owner: Any) -> list[Any] | None:
        """The results, in memory that the next run of these sizes overwrites; None the first time that sizes come.
        ``arguments``: arrays, tensors on the device that are part of what repeats, and shapes. ``owner``: the object
        with which the graphs go.

        Raises MoecError if a call of the driver fails, and what the program raises during a capture.
        """
        own, key = self._graphs.setdefault(owner, _Graphs()), _key(arguments)
        if own.is_first(key):
            return None
        captured = own.captured.get(key)
        if captured is None:
            captured = self._capture(arguments)
            own.add(key, captured)
        else:
            own.captured.move_to_end(key)
            captured.fill(arguments)
        self._driver.launch(captured.graph, self._streams.current())
        return captured.outputs

    def forget(self) -> None:
        """Free all graphs; runs are then captured again."""
        for graphs in self._graphs.values():
            graphs.captured.clear()

    def _capture(self, arguments: Sequence[Any]) -> _Captured:
        """Capture a run on a thread that stays: TVM frees the workspaces of kernels with the thread that ran them."""
        stream = self._streams.current()

        def capture() -> _Captured:
            self._driver.use_first_gpu()
            with self._driver.relaxed(), self._streams.switched_to(stream):
                return self._captured_here(arguments)

        return _capturing().submit(capture).result()

    def _captured_here(self, arguments: Sequence[Any]) -> _Captured:
        captured = _Captured(self._driver, self._streams, arguments)
        with self._program.keeping_memory():
            self._program(captured.arguments, self._weights)
        if self._stream is None:
            self._stream = self._driver.new_stream()
        self._driver.begin_capture(self._stream)
        try:
            with self._streams.switched_to(self._stream), self._program.keeping_memory() as captured.memory:
                captured.outputs = list(self._program(captured.arguments, self._weights))
        except BaseException:
            with contextlib.suppress(Exception):  # the first error is the one to report
                self._driver.forget(self._driver.end_capture(self._stream))
            raise
        captured.graph = self._driver.end_capture(self._stream)
        weakref.finalize(captured, self._driver.forget, captured.graph).atexit = False
        return captured


def _key(arguments: Sequence[Any]) -> Key:
    """Facts that have to be the same in a run that a graph serves: sizes of arrays, and whether they are on the host;
    addresses and sizes of other tensors; shapes."""
    return tuple(
        (type(value), *value.shape)
        if isinstance(value, (np.ndarray, OnDevice))
        else (value.data_ptr(), *value.shape)
        if hasattr(value, "data_ptr")
        else tuple(value)
        for value in arguments
    )
