"""Where a program runs, as the executor sees it: how its code is loaded, and how arrays get there and back."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np

from moec.errors import MoecError
from moec.runtime.device_module import DeviceModule
from moec.runtime.library import load_ffi
from moec.runtime.tensors import from_runtime, to_runtime

_CPU, _CUDA = 1, 2  # DLPack's numbers
_MODULE_LOADER = "ffi.Module.load_from_bytes.cuda"

ModuleLoader = Callable[[DeviceModule], Any]
"""Makes a runtime module, whose functions are the kernels, of what is embedded in the host's code."""


class Device(Protocol):
    """One place."""

    @property
    def number(self) -> int:
        """The kind of device as DLPack counts."""
        ...

    def loading(self) -> contextlib.AbstractContextManager[None]:
        """Inside, a program's objects can be loaded."""
        ...

    def place(self, array: np.ndarray) -> Any:
        """The array as a tensor there; the same memory where that can be."""
        ...

    def fetch(self, tensor: Any) -> np.ndarray:
        """A tensor there as an array, after everything before is done; the same memory where that can be."""
        ...


class Host:
    """The processor itself."""

    number = _CPU

    def loading(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def place(self, array: np.ndarray) -> Any:
        return to_runtime(array)

    def fetch(self, tensor: Any) -> np.ndarray:
        return from_runtime(tensor)


class Gpu:
    """A device with memory of its own. ``module_loader``: what makes its code ready to run."""

    number = _CUDA

    def __init__(self, module_loader: ModuleLoader) -> None:
        self._module_loader = module_loader

    @contextlib.contextmanager
    def loading(self) -> Iterator[None]:
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

    def place(self, array: np.ndarray) -> Any:
        return _copy(to_runtime(array), "cuda")

    def fetch(self, tensor: Any) -> np.ndarray:
        return from_runtime(_copy(tensor, "cpu"))


def _copy(tensor: Any, kind: str) -> Any:
    """A copy of the tensor in the memory of the first device of a kind."""
    ffi = load_ffi()
    allocate, copy = map(ffi.get_global_func, ("runtime.TVMTensorAllocWithScope", "runtime.TVMTensorCopyFromTo"))
    result = allocate(tensor.shape, tensor.dtype, ffi.device(kind, 0), None)
    if math.prod(tensor.shape):
        copy(tensor, result)
    return result
