"""Where a program runs, as the executor sees it: how its code is loaded, and how arrays get there and back."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from moec.errors import MoecError
from moec.runtime.on_device import OnDevice
from moec.runtime.tensors import CPU, from_runtime, to_runtime

if TYPE_CHECKING:
    from moec.runtime.program import LoadedProgram

_NOTHING: contextlib.AbstractContextManager[None] = contextlib.nullcontext()


class CapturedRuns(Protocol):
    """Runs of one program that a device has written down, and launches as a whole when they come again."""

    def replay(self, arrays: Sequence[np.ndarray | OnDevice], lengths: Sequence[Any] = ()) -> list[Any] | None:
        """The results, in memory that the next run of these sizes overwrites; None for sizes that come the first
        time. ``lengths``: shapes that the program takes behind the arrays."""
        ...

    def forget(self) -> None:
        """Capture all sizes anew."""
        ...


class Device(Protocol):
    """One place."""

    @property
    def number(self) -> int:
        """The kind of device as DLPack counts."""
        ...

    @property
    def architecture(self) -> str | None:
        """The architecture of the program that it runs, where an artifact has several; None for the newest."""
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

    def new(self, shape: Sequence[int], dtype: np.dtype, *, zeros: bool = False) -> np.ndarray | OnDevice:
        """Memory there, with anything in it or with zeros. Raises MemoryError, or ValueError for a size without end."""
        ...

    def part(self, array: Any, first: int, shape: Sequence[int]) -> Any:
        """Neighbouring numbers of an array there, from number ``first`` on, over the same memory."""
        ...

    def assign(self, target: Any, source: Any) -> None:
        """Give an array there the numbers of another, of the same shape and type."""
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

    def captured_runs(self, program: LoadedProgram, weights: Sequence[Any]) -> CapturedRuns | None:
        """Those of a program on ``weights`` as they are when it is captured; None where there are none. Raises
        UnsupportedError for a program that cannot be captured."""
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
