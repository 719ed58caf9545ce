"""Devices that programs run on: how the executor loads code on them and moves arrays to them and back."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from moec.common.errors import MoecError
from moec.common.free_memory import available_memory
from moec.runtime.on_device import OnDevice
from moec.runtime.tensors import CPU, from_runtime, to_runtime

if TYPE_CHECKING:
    from moec.runtime.program import LoadedProgram

GLOO = "gloo"
"""Engine of torch.distributed for the memory of processors."""
_NOTHING: contextlib.AbstractContextManager[None] = contextlib.nullcontext()


class CapturedRuns(Protocol):
    """Captured runs of one program, which the device launches as a whole when sizes repeat."""

    def replay(self, arguments: Sequence[Any], owner: Any) -> list[Any] | None:
        """Replay a run. The results are in memory that the next run of these sizes overwrites. Returns None for sizes
        that occur for the first time. ``arguments``: arrays, and what else the program takes: tensors on the device,
        which later runs have to give again, and shapes. ``owner``: the object with which the graphs go."""
        ...

    def forget(self) -> None:
        """Drop all captures, so that all sizes are captured anew."""
        ...


class Device(Protocol):
    """A place where programs run."""

    @property
    def number(self) -> int:
        """Kind of device, by DLPack's numbers."""
        ...

    @property
    def architecture(self) -> str | None:
        """Architecture of the program that it runs, where an artifact has several; None for the newest."""
        ...

    @property
    def gpu(self) -> str | None:
        """Name of the GPU; None where there is none, as in an emulator."""
        ...

    def loading(self) -> contextlib.AbstractContextManager[None]:
        """Context in which a program's objects can be loaded."""
        ...

    def with_code(self, binary: bytes) -> Device:
        """The same device, on which another program of an artifact is loaded with its own ``binary``."""
        ...

    def place(self, array: np.ndarray | OnDevice) -> Any:
        """Move an array to the device as a tensor, sharing memory where possible."""
        ...

    def fetch(self, tensor: Any) -> np.ndarray:
        """Move a tensor on the device to the host as an array, after all earlier work is done, sharing memory where
        possible."""
        ...

    def placing(self) -> Callable[[Sequence[np.ndarray | OnDevice]], list[Any]]:
        """Prepare the way of one program's inputs to the device: a function that moves all arrays of a run, like
        :meth:`place`. The next run may overwrite what it returned."""
        ...

    def fetch_all(self, tensors: Sequence[Any]) -> list[np.ndarray]:
        """Move several tensors to the host, like :meth:`fetch`."""
        ...

    @property
    def is_capturing(self) -> bool:
        """Whether the caller records the work of the thread's current stream for a graph of its own."""
        ...

    def copy(self, tensor: Any) -> Any:
        """Copy a tensor on the device into memory of its own."""
        ...

    def new(self, shape: Sequence[int], dtype: np.dtype, *, zeros: bool = False) -> np.ndarray | OnDevice:
        """Allocate memory on the device, uninitialised or zero. Raises MemoryError, or ValueError for an absurd
        size."""
        ...

    def part(self, array: Any, first: int, shape: Sequence[int]) -> Any:
        """View contiguous elements of an array on the device, from element ``first`` on."""
        ...

    def assign(self, target: Any, source: Any) -> None:
        """Copy the elements of one array on the device to another of the same shape and type."""
        ...

    def working(
        self, arrays: Sequence[np.ndarray | OnDevice], *, waits: bool = False
    ) -> contextlib.AbstractContextManager[None]:
        """Context in which the calling thread runs a program on ``arrays`` on the device. ``waits``: the program's host
        part reads results of the device."""
        ...

    @property
    def free_bytes(self) -> int:
        """Bytes of its memory that no program uses."""
        ...

    def finish(self) -> None:
        """Wait for all work that the calling thread has submitted."""
        ...

    @property
    def backend(self) -> str:
        """Engine of torch.distributed that carries its memory between processes."""
        ...

    def view_of(self, tensor: Any) -> Any:
        """View a tensor of a program that is running, for the exchange of its rows: as an array on the host, and as
        PyTorch's tensor on a GPU. Raises MoecError where PyTorch is missing."""
        ...

    def exchanging(self) -> contextlib.AbstractContextManager[None]:
        """Context in which such views are used, in the order of the program's work."""
        ...

    def captured_runs(self, program: LoadedProgram, weights: Sequence[Any]) -> CapturedRuns | None:
        """Prepare to capture runs of a program. Weights are captured with their current values. Returns None where the
        device cannot capture. Raises UnsupportedError for a program that cannot be captured."""
        ...

    def explain(self, error: Exception) -> MoecError | None:
        """Translate an error of a program that the device is to blame for. Returns None for another error."""
        ...


class Host:
    """The processor itself."""

    number = CPU
    architecture = gpu = None
    backend = GLOO
    is_capturing = False

    @property
    def free_bytes(self) -> int:
        return available_memory()

    def loading(self) -> contextlib.AbstractContextManager[None]:
        return _NOTHING

    def with_code(self, binary: bytes) -> Device:
        return self

    def place(self, array: np.ndarray | OnDevice) -> Any:
        return to_runtime(array)  # type: ignore[arg-type]  # checks of inputs let arrays of the host pass alone

    def fetch(self, tensor: Any) -> np.ndarray:
        return from_runtime(tensor)

    def placing(self) -> Callable[[Sequence[np.ndarray | OnDevice]], list[Any]]:
        return lambda arrays: [*map(self.place, arrays)]

    def fetch_all(self, tensors: Sequence[Any]) -> list[np.ndarray]:
        return [*map(from_runtime, tensors)]

    def copy(self, tensor: Any) -> Any:
        return to_runtime(from_runtime(tensor).copy())

    def view_of(self, tensor: Any) -> Any:
        return from_runtime(tensor)

    def exchanging(self) -> contextlib.AbstractContextManager[None]:
        return _NOTHING

    def new(self, shape: Sequence[int], dtype: np.dtype, *, zeros: bool = False) -> np.ndarray | OnDevice:
        return np.zeros(shape, dtype) if zeros else np.empty(shape, dtype)

    def part(self, array: Any, first: int, shape: Sequence[int]) -> Any:
        return array.reshape(-1)[first : first + math.prod(shape)].reshape(shape)

    def assign(self, target: Any, source: Any) -> None:
        target[...] = source

    def working(
        self, arrays: Sequence[np.ndarray | OnDevice], *, waits: bool = False
    ) -> contextlib.AbstractContextManager[None]:
        return _NOTHING

    def finish(self) -> None:
        pass

    def captured_runs(self, program: LoadedProgram, weights: Sequence[Any]) -> CapturedRuns | None:
        return None

    def explain(self, error: Exception) -> MoecError | None:
        return None
