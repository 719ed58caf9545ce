"""Devices with memory and streams of their own, in terms of TVM's generic device functions."""

from __future__ import annotations

import abc
import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from moec.common.errors import DefectError, MoecError, UnsupportedError
from moec.runtime.device_module import DeviceModule
from moec.runtime.library import load_ffi
from moec.runtime.on_device import OnDevice, has_torch
from moec.runtime.streams import DEFAULT, Streams
from moec.runtime.tensors import CPU, from_runtime, new_tensor, over_runtime, to_runtime, view

if TYPE_CHECKING:
    from moec.runtime.device import CapturedRuns
    from moec.runtime.program import LoadedProgram

ModuleLoader = Callable[[DeviceModule], Any]
"""Function that makes a runtime module, whose functions are the kernels, from a device module."""

_loading = threading.RLock()
"""Lock while a program's code is loaded, because the function that finds the code is global to the process."""


class GpuDevice(abc.ABC):
    """The first device of a kind. ``module_loader`` makes its code ready to run, ``architecture`` is that of the code.

    Work goes to PyTorch's current stream where inputs are PyTorch's tensors on the device, and otherwise to the stream
    set in ``tvm_ffi``, by default the default stream. A program whose host part waits for the device runs on the
    default stream, on which the host reads, and the caller's stream waits for it.
    """

    number: int
    """Kind of device, by DLPack's numbers."""
    blob_loader: ClassVar[str]
    """Name of the function that host code calls with the embedded device module."""
    streams: ClassVar[Streams]

    def __init__(self, module_loader: ModuleLoader, architecture: str | None = None) -> None:
        self._module_loader, self.architecture = module_loader, architecture

    @property
    @abc.abstractmethod
    def gpu(self) -> str | None:
        """Name of the GPU; None for an emulated one."""

    @abc.abstractmethod
    def with_code(self, binary: bytes) -> GpuDevice:
        """See :meth:`moec.runtime.device.Device.with_code`."""

    @abc.abstractmethod
    def torch_stream(self) -> int:
        """Address of PyTorch's current stream on the device."""

    @abc.abstractmethod
    def placing(self) -> Callable[[Sequence[np.ndarray | OnDevice]], list[Any]]:
        """See :meth:`moec.runtime.device.Device.placing`."""

    @abc.abstractmethod
    def fetch_all(self, tensors: Sequence[Any]) -> list[np.ndarray]:
        """See :meth:`moec.runtime.device.Device.fetch_all`."""

    @property
    @abc.abstractmethod
    def free_bytes(self) -> int:
        """See :meth:`moec.runtime.device.Device.free_bytes`."""

    @abc.abstractmethod
    def is_captured(self, stream: int) -> bool:
        """Whether work that is put on the stream is recorded instead of executed."""

    @abc.abstractmethod
    def copying_on_device(self, tensor: Any, result: Any) -> None:
        """Copy a tensor on the device to another in the order of the current stream."""

    @abc.abstractmethod
    def captured_runs(self, program: LoadedProgram, weights: Sequence[Any]) -> CapturedRuns | None:
        """See :meth:`moec.runtime.device.Device.captured_runs`."""

    @abc.abstractmethod
    def explain(self, error: Exception) -> MoecError | None:
        """See :meth:`moec.runtime.device.Device.explain`."""

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
        except Exception:  # the linker loses the type of an error
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
        if math.prod(shape) * dtype.itemsize >= 1 << 63:  # the runtime would count bytes modulo 2^64
            raise ValueError(f"{dtype}{list(shape)} has more bytes than memory has addresses")
        try:
            tensor = new_tensor(shape, load_ffi().dtype(dtype.name), self.number)
            if zeros:
                self._copy_into(to_runtime(np.zeros(shape, dtype)), tensor)
        except Exception as error:  # each kind of device reports lack of memory in its own way
            explained = self.explain(error)
            raise explained if isinstance(explained, DefectError) else MemoryError(str(error)) from error
        return OnDevice(tensor, dtype, tuple(shape), torch=False)

    def part(self, array: Any, first: int, shape: Sequence[int]) -> Any:
        tensor = view(array.tensor, shape, array.dtype, first * array.dtype.itemsize)
        return OnDevice(tensor, array.dtype, tuple(shape), torch=False)

    def assign(self, target: Any, source: Any) -> None:
        self._copy_into(source.tensor, target.tensor)

    @contextlib.contextmanager
    def working(self, arrays: Sequence[np.ndarray | OnDevice], *, waits: bool = False) -> Iterator[None]:
        stream = self.torch_stream() if has_torch(arrays) else self.streams.current()
        is_captured = self.is_captured(stream)
        if is_captured and waits:
            raise UnsupportedError("the model cannot be captured: its host part reads what the GPU computes")
        with self.streams.working_on(stream, is_captured=is_captured):
            if not waits or stream == DEFAULT:
                yield
                return
            with self.streams.working_on(DEFAULT):
                yield
            self.streams.let_wait(stream, DEFAULT)

    @property
    def is_capturing(self) -> bool:
        return self.is_captured(self.streams.current())

    @property
    @abc.abstractmethod
    def backend(self) -> str:
        """See :meth:`moec.runtime.device.Device.backend`."""

    def view_of(self, tensor: Any) -> Any:
        torch = _torch()
        if self.gpu is not None:
            return torch.from_dlpack(tensor)
        dtype, array = getattr(torch, str(tensor.dtype)), over_runtime(tensor)
        return torch.from_numpy(array.reshape(-1).view(np.uint8)).view(dtype).reshape(array.shape)

    @contextlib.contextmanager
    def exchanging(self) -> Iterator[None]:
        if self.gpu is None:
            yield
            return
        cuda = _torch().cuda
        stream = self.streams.current()
        with cuda.stream(cuda.default_stream() if stream == DEFAULT else cuda.ExternalStream(stream)):
            yield

    def finish(self) -> None:
        self.streams.finish(self.streams.current())

    def _copied(self, tensor: Any, kind: int) -> Any:
        """Copy the tensor into the memory of the first device of a kind, in the order of the current stream, and wait
        for it."""
        result = new_tensor(tensor.shape, tensor.dtype, kind)
        self._copy_into(tensor, result)
        return result

    def _copy_into(self, tensor: Any, result: Any) -> None:
        """Copy a tensor. Copies from and to the host run on the default stream, for which other streams do not wait."""
        if not math.prod(tensor.shape):
            return
        if self.number == tensor.device.dlpack_device_type() == result.device.dlpack_device_type():
            self.copying_on_device(tensor, result)
            return
        stream = self.streams.current()
        if stream != DEFAULT and not self.is_captured(stream):
            self.streams.finish(stream)
        load_ffi().get_global_func("runtime.TVMTensorCopyFromTo")(tensor, result)
        if stream != DEFAULT:
            self.streams.finish(DEFAULT)


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise MoecError('experts on several ranks need PyTorch on a GPU: pip install "moec[torch]"') from error
    return torch
