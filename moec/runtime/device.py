"""Where a program runs, as the executor sees it: how its code is loaded, and how arrays get there and back."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from moec.errors import MoecError
from moec.runtime import streams
from moec.runtime.device_module import DeviceModule
from moec.runtime.driver import Driver
from moec.runtime.gpu_errors import explain_gpu_error
from moec.runtime.library import load_ffi
from moec.runtime.on_device import OnDevice, torch_stream
from moec.runtime.tensors import CPU, CUDA, from_runtime, to_runtime

_MODULE_LOADER = "ffi.Module.load_from_bytes.cuda"

ModuleLoader = Callable[[DeviceModule], Any]
"""Makes a runtime module, whose functions are the kernels, of what is embedded in the host's code."""


_NOTHING: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
_loading = threading.RLock()
"""Held while a program's code is loaded, which a function finds that the whole process shares."""


class Device(Protocol):
    """One place."""

    @property
    def number(self) -> int:
        """The kind of device as DLPack counts."""
        ...

    @property
    def architecture(self) -> str | None:
        """Of the program that it runs, where an artifact has several; None for the newest."""
        ...

    @property
    def gpu(self) -> str | None:
        """The name of the GPU; None where there is none, as in an emulator."""
        ...

    def loading(self) -> contextlib.AbstractContextManager[None]:
        """Inside, a program's objects can be loaded."""
        ...

    def place(self, array: np.ndarray | OnDevice) -> Any:
        """The array as a tensor there; the same memory where that can be."""
        ...

    def fetch(self, tensor: Any) -> np.ndarray:
        """A tensor there as an array, after everything before is done; the same memory where that can be."""
        ...

    def copy(self, tensor: Any) -> Any:
        """A copy of a tensor there, in memory of its own."""
        ...

    def working(
        self, arrays: Sequence[np.ndarray | OnDevice], *, waits: bool = False
    ) -> contextlib.AbstractContextManager[None]:
        """Inside, the calling thread runs a program on ``arrays`` there. ``waits``: the program's host part reads what
        the device computed before."""
        ...

    def finish(self) -> None:
        """Wait for all that the calling thread has put there."""
        ...

    def explain(self, error: Exception) -> MoecError | None:
        """What an error of a program means that the device is to blame for; None for another."""
        ...


class Host:
    """The processor itself."""

    number = CPU
    architecture = gpu = None

    def loading(self) -> contextlib.AbstractContextManager[None]:
        return _NOTHING

    def place(self, array: np.ndarray | OnDevice) -> Any:
        return to_runtime(array)  # type: ignore[arg-type]  # checks of inputs let arrays of the host pass alone

    def fetch(self, tensor: Any) -> np.ndarray:
        return from_runtime(tensor)

    def copy(self, tensor: Any) -> Any:
        return to_runtime(from_runtime(tensor).copy())

    def working(
        self, arrays: Sequence[np.ndarray | OnDevice], *, waits: bool = False
    ) -> contextlib.AbstractContextManager[None]:
        return _NOTHING

    def finish(self) -> None:
        pass

    def explain(self, error: Exception) -> MoecError | None:
        return None


class Gpu:
    """A device with memory of its own. ``module_loader``: what makes its code ready to run. ``driver``: None where
    there is none, as in an emulator. ``architecture``: of the code that it runs.

    Work goes to the stream that is current in PyTorch where inputs are PyTorch's tensors on the device, and else to the
    one that ``tvm_ffi`` was told, by default CUDA's default stream. A program whose host part waits for the device runs
    on the default stream, where that reading takes place, and the caller's stream waits for it.
    """

    number = CUDA

    def __init__(
        self, module_loader: ModuleLoader, driver: Driver | None = None, architecture: str | None = None
    ) -> None:
        self._module_loader, self.driver, self.architecture = module_loader, driver, architecture

    @property
    def gpu(self) -> str | None:
        return None if self.driver is None else self.driver.gpus()[0].name

    @contextlib.contextmanager
    def loading(self) -> Iterator[None]:
        with _loading:
            yield from self._loading()

    def _loading(self) -> Iterator[None]:
        ffi = load_ffi()
        before = ffi.get_global_func(_MODULE_LOADER, allow_missing=True)
        refusals: list[MoecError] = []

        def load(blob: Any) -> Any:
            try:
                return self._module_loader(DeviceModule.parse(bytes(blob)))
            except MoecError as error:
                refusals.append(error)
                raise

        ffi.register_global_func(_MODULE_LOADER, load, override=True)
        try:
            yield
        except Exception:  # on its way through the linker an error loses its type
            if refusals:
                raise refusals[0] from None
            raise
        finally:
            if before is None:
                ffi.remove_global_func(_MODULE_LOADER)
            else:
                ffi.register_global_func(_MODULE_LOADER, before, override=True)

    def place(self, array: np.ndarray | OnDevice) -> Any:
        if isinstance(array, OnDevice):
            return array.tensor if array.nbytes else new_tensor(array.tensor.shape, array.tensor.dtype, "cuda")
        return _copy(to_runtime(array), "cuda")

    def fetch(self, tensor: Any) -> np.ndarray:
        return from_runtime(_copy(tensor, "cpu"))

    def copy(self, tensor: Any) -> Any:
        return _copy(tensor, "cuda")

    @contextlib.contextmanager
    def working(self, arrays: Sequence[np.ndarray | OnDevice], *, waits: bool = False) -> Iterator[None]:
        stream = torch_stream(arrays)
        stream = streams.current_stream() if stream is None else stream
        with streams.working_on(stream):
            if not waits or stream == streams.DEFAULT:
                yield
                return
            with streams.working_on(streams.DEFAULT):
                yield
            streams.let_wait(stream, streams.DEFAULT)

    def finish(self) -> None:
        streams.finish(streams.current_stream())

    def explain(self, error: Exception) -> MoecError | None:
        return explain_gpu_error(str(error))


def new_tensor(shape: Any, dtype: Any, kind: str) -> Any:
    """Memory of the first device of a kind, with anything in it."""
    ffi = load_ffi()
    return ffi.get_global_func("runtime.TVMTensorAllocWithScope")(ffi.Shape(shape), dtype, ffi.device(kind, 0), None)


def _copy(tensor: Any, kind: str) -> Any:
    """A copy of the tensor in the memory of the first device of a kind, in the order of the current stream, complete.

    Copies go to the default stream, which other streams do not wait for.
    """
    result = new_tensor(tensor.shape, tensor.dtype, kind)
    if not math.prod(tensor.shape):
        return result
    stream = streams.current_stream()
    if stream != streams.DEFAULT:
        streams.finish(stream)
    load_ffi().get_global_func("runtime.TVMTensorCopyFromTo")(tensor, result)
    if stream != streams.DEFAULT:
        streams.finish(streams.DEFAULT)
    return result
