"""CUDA graphs: a run is captured once for each set of input sizes, and launched as a whole from then on.

With few tokens a kernel takes a few microseconds, and so does launching it; a graph needs one launch for all kernels. A
captured run reads and writes at the addresses that it had at capture. Inputs are therefore copied to memory of the
graph, and results are read from it.

A set of sizes is captured when it comes the second time, so sizes that never come again cost nothing. Just before the
capture the run is executed once more, which loads its code and allocates its memory. The graph keeps all memory that
the captured run allocated, even what the run freed again, because the next launch writes there.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from moec.common.errors import UnsupportedError
from moec.runtime.library import load_ffi
from moec.runtime.on_device import OnDevice
from moec.runtime.program import BUILTIN, NO_INSTRUMENT_ACTION, LoadedProgram
from moec.runtime.streams import Streams
from moec.runtime.tensors import new_tensor
from moec.targets.cuda.device.driver import CUDA, Driver

_MOST = 32
"""The largest number of graphs of a model, since each keeps memory. Beyond it, the least recently used one is freed."""
_TAKES_MEMORY = f"{BUILTIN}alloc_storage"

Sizes = tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True)
class _Captured:
    """A captured run. ``graph``: its address; ``arguments`` and ``outputs``: tensors at the addresses that it uses,
    and shapes among the arguments; ``memory``: references that keep the graph's memory from being reused by other
    runs."""

    graph: int
    arguments: list[Any]
    outputs: list[Any]
    memory: list[Any]


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
        self._seen: set[Sizes] = set()
        self._captured: collections.OrderedDict[Sizes, _Captured] = collections.OrderedDict()

    def replay(self, arguments: Sequence[Any]) -> list[Any] | None:
        """The results, in memory that the next run of these sizes overwrites; None the first time that sizes come.
        ``arguments``: arrays, and shapes that the program takes besides.

        Raises MoecError if a call of the driver fails.
        """
        sizes = tuple(tuple(value.shape if _is_array(value) else value) for value in arguments)
        if sizes not in self._seen:
            self._seen.add(sizes)
            return None
        self._driver.use_first_gpu()
        captured = self._captured.get(sizes)
        if captured is None:
            captured = self._captured[sizes] = self._capture(arguments)
            self._forget_oldest()
        else:
            self._captured.move_to_end(sizes)
            self._fill(captured.arguments, arguments)
        self._driver.launch(captured.graph, self._streams.current())
        return captured.outputs

    def forget(self) -> None:
        """Free all graphs; runs are then captured again."""
        for captured in self._captured.values():
            self._driver.forget(captured.graph)
        self._captured.clear()

    def _capture(self, arguments: Sequence[Any]) -> _Captured:
        own = [
            new_tensor(value.shape, load_ffi().dtype(value.dtype.name), CUDA) if _is_array(value) else value
            for value in arguments
        ]
        self._fill(own, arguments)
        with self._keeping_memory():
            self._program(own, self._weights)
        if self._stream is None:
            self._stream = self._driver.new_stream()
        self._driver.begin_capture(self._stream)
        try:
            with self._streams.switched_to(self._stream), self._keeping_memory() as memory:
                outputs = list(self._program(own, self._weights))
        except BaseException:
            with contextlib.suppress(Exception):  # the first error is the one to report
                self._driver.forget(self._driver.end_capture(self._stream))
            raise
        return _Captured(self._driver.end_capture(self._stream), own, outputs, memory)

    @contextlib.contextmanager
    def _keeping_memory(self) -> Iterator[list[Any]]:
        """A context with a list, which collects references to all memory that the program allocates inside."""
        memory: list[Any] = []

        def keep(_function: Any, symbol: str, before: bool, result: Any, *_arguments: Any) -> int:
            if not before and symbol == _TAKES_MEMORY:
                memory.append(result)
            return NO_INSTRUMENT_ACTION

        with self._program.instrumented(keep):
            yield memory

    def _fill(self, targets: Sequence[Any], arguments: Sequence[Any]) -> None:
        for target, array in zip(targets, arguments, strict=True):
            size = array.nbytes if _is_array(array) else 0
            if not size:
                continue
            if isinstance(array, OnDevice):
                self._driver.copy_on_device(target.data_ptr(), array.tensor.data_ptr(), size, self._streams.current())
            else:
                source = np.ascontiguousarray(array)
                self._driver.copy_from_host(target.data_ptr(), source.ctypes.data, size, self._streams.current())

    def _forget_oldest(self) -> None:
        while len(self._captured) > _MOST:
            sizes, captured = self._captured.popitem(last=False)
            self._seen.discard(sizes)
            self._driver.forget(captured.graph)


def _is_array(value: Any) -> bool:
    return isinstance(value, (np.ndarray, OnDevice))
