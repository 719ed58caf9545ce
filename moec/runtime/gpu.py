"""A device with memory and streams of its own, by what TVM's runtime has for every kind of them."""

from __future__ import annotations

import abc
import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from moec.errors import DefectError, MoecError
from moec.runtime.device_module import DeviceModule
from moec.runtime.library import load_ffi
from moec.runtime.on_device import OnDevice, has_torch
from moec.runtime.streams import DEFAULT, Streams
from moec.runtime.tensors import CPU, from_runtime, new_tensor, to_runtime, view

if TYPE_CHECKING:
    from moec.runtime.device import CapturedRuns
    from moec.runtime.program import LoadedProgram

ModuleLoader = Callable[[DeviceModule], Any]
"""Makes a runtime module, whose functions are the kernels, of what is embedded in the host's code."""

_loading = threading.RLock()
"""Held while a program's code is loaded, which a function finds that the whole process shares."""


class GpuDevice(abc.ABC):
    """The first device of a kind. ``module_loader``: what makes its code ready to run. ``architecture``: of that code.

    Work goes to the stream that is current in PyTorch where inputs are PyTorch's tensors on the device, and else to the
    one that ``tvm_ffi`` was told, by default the default stream. A program whose host part waits for the device runs on
    the default stream, where that reading takes place, and the caller's stream waits for it.
    """

    number: int
    """The kind of device, as DLPack counts."""
    blob_loader: ClassVar[str]
    """The function that host code calls with the device module embedded in it."""
    streams: ClassVar[Streams]

    def __init__(self, module_loader: ModuleLoader, architecture: str | None = None) -> None:
        self._module_loader, self.architecture = module_loader, architecture

    @property
    @abc.abstractmethod
    def gpu(self) -> str | None:
        """The name of the GPU; None for an emulated one."""

    @abc.abstractmethod
    def torch_stream(self) -> int:
        """The address of PyTorch's current stream on the device."""

    @abc.abstractmethod
    def captured_runs(self, program: LoadedProgram, weights: Sequence[Any]) -> CapturedRuns | None:
        """As :meth:`moec.runtime.device.Device.captured_runs`."""

    @abc.abstractmethod
    def explain(self, error: Exception) -> MoecError | None:
        """As :meth:`moec.runtime.device.Device.explain`."""

    @contextlib.contextmanager
    def loading(self) -> Iterator[None]:
        with _loading:
            yield from self._loading()

    def _loading(self) -> Iterator[None]:
        ffi = load_ffi()
        before = ffi.get_global_func(self.blob_loader, allow_missing=True)
        refusals: list[MoecError] = []

        def load(blob: Any) -> Any:
            try:
                return self._module_loader(DeviceModule.parse(bytes(blob)))
            except MoecError as error:
                refusals.append(error)
                raise

        ffi.register_global_func(self.blob_loader, load, override=True)
        try:
            yield
        except Exception:  # on its way through the linker an error loses its type
            if refusals:
                raise refusals[0] from None
            raise
        finally:
            if before is None:
                ffi.remove_global_func(self.blob_loader)
            else:
                ffi.register_global_func(self.blob_loader, before, override=True)

    def place(self, array: np.ndarray | OnDevice) -> Any:
        if isinstance(array, OnDevice):
            return array.tensor if array.nbytes else new_tensor(array.tensor.shape, array.tensor.dtype, self.number)
        return self._copied(to_runtime(array), self.number)

    def fetch(self, tensor: Any) -> np.ndarray:
        return from_runtime(self._copied(tensor, CPU))

    def copy(self, tensor: Any) -> Any:
        return self._copied(tensor, self.number)

    def new(self, shape: Sequence[int], dtype: np.dtype, *, zeros: bool = False) -> np.ndarray | OnDevice:
        try:
            tensor = new_tensor(shape, load_ffi().dtype(dtype.name), self.number)
            if zeros:
                self._copy_into(to_runtime(np.zeros(shape, dtype)), tensor)
        except Exception as error:  # each kind of device says in its own way that it has no more
            known = self.explain(error)
            raise known if isinstance(known, DefectError) else MemoryError(str(error)) from error
        return OnDevice(tensor, dtype, tuple(shape), torch=False)

    def part(self, array: Any, first: int, shape: Sequence[int]) -> Any:
        tensor = view(array.tensor, shape, array.dtype, first * array.dtype.itemsize)
        return OnDevice(tensor, array.dtype, tuple(shape), torch=False)

    def assign(self, target: Any, source: Any) -> None:
        self._copy_into(source.tensor, target.tensor)

    @contextlib.contextmanager
    def working(self, arrays: Sequence[np.ndarray | OnDevice], *, waits: bool = False) -> Iterator[None]:
        stream = self.torch_stream() if has_torch(arrays) else self.streams.current()
        with self.streams.working_on(stream):
            if not waits or stream == DEFAULT:
                yield
                return
            with self.streams.working_on(DEFAULT):
                yield
            self.streams.let_wait(stream, DEFAULT)

    def finish(self) -> None:
        self.streams.finish(self.streams.current())

    def _copied(self, tensor: Any, kind: int) -> Any:
        """A copy of the tensor in the memory of the first device of a kind, in the order of the current stream,
        complete."""
        result = new_tensor(tensor.shape, tensor.dtype, kind)
        self._copy_into(tensor, result)
        return result

    def _copy_into(self, tensor: Any, result: Any) -> None:
        """Copies go to the default stream, which other streams do not wait for."""
        if not math.prod(tensor.shape):
            return
        stream = self.streams.current()
        if stream != DEFAULT:
            self.streams.finish(stream)
        load_ffi().get_global_func("runtime.TVMTensorCopyFromTo")(tensor, result)
        if stream != DEFAULT:
            self.streams.finish(DEFAULT)
