"""Runs the entry function of linked object files on numpy arrays."""

from __future__ import annotations

import dataclasses
import pathlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from moec.errors import DefectError, InputError, MoecError
from moec.runtime.device import Device, Host
from moec.runtime.inputs import InputCheck
from moec.runtime.library import load_ffi, load_objects, use_threads
from moec.runtime.machine import check_threads
from moec.runtime.manifest import TensorSpec

_CPU, _FIRST_DEVICE, _POOLED_ALLOCATOR = 1, 0, 2
_NO_INSTRUMENT_ACTION = 0
_BUILTIN = "vm.builtin."
_SIZE_CHECKS = ("Mismatched ", "View with shape", "match_cast", "mismatch to ")
"""What the runtime says, in a ValueError, where a size is not what the program expected."""


@dataclasses.dataclass(frozen=True)
class Argument:
    """One argument of a kernel's call, whose memory may be gone after it. ``constant``: it is one of the weights."""

    array: np.ndarray
    constant: bool


class Executor:
    """One loaded program. ``run`` may be called from several threads: calls on one executor take turns, since each
    uses all its threads anyway.

    ``weights`` are passed without copying, so they must stay C-contiguous and 16-byte aligned. ``threads`` is at most
    the number of cores available, which is also what None stands for. ``device``: where it runs; None is the host.
    """

    def __init__(
        self,
        objects: Sequence[pathlib.Path],
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        weights: Sequence[np.ndarray],
        *,
        threads: int | None = None,
        where: str = "program",
        device: Device | None = None,
    ) -> None:
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self.threads = check_threads(threads)
        self._check = InputCheck(self.inputs)
        self._lock = threading.Lock()
        self._device = device or Host()
        with self._device.loading():
            self._module = load_objects(objects, where)
            self._machine = self._module.get_function("vm_load_executable")()
        # The last of the machine's devices is its host.
        kinds = dict.fromkeys((self._device.number, _CPU))
        places = [number for kind in kinds for number in (kind, _FIRST_DEVICE, _POOLED_ALLOCATOR)]
        self._machine.get_function("vm_initialization")(*places)
        self._main = self._machine.get_function("main")
        self._weight_arrays = list(weights)
        self._weights = [self._device.place(array) for array in weights]
        self._weight_addresses = frozenset(tensor.data_ptr() for tensor in self._weights)

    def run(self, values: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The outputs by name. Raises InputError for values that do not fit the inputs' specifications or that the
        program cannot combine, and DefectError when it fails for any other reason."""
        arrays = self._check(values)
        with self._lock:
            use_threads(self.threads)
            return self._call(arrays)

    def time_kernels(self, values: Mapping[str, Any]) -> list[tuple[str, float]]:
        """Run once and return (function, seconds) of every call in order; views and allocations are left out."""
        calls: list[tuple[str, float]] = []
        start = 0.0

        def instrument(_function: Any, symbol: str, before: bool, _result: Any, *_arguments: Any) -> int:
            nonlocal start
            if before:
                start = time.perf_counter()
            elif not symbol.startswith(_BUILTIN):
                calls.append((symbol, time.perf_counter() - start))
            return _NO_INSTRUMENT_ACTION

        self._run_instrumented(values, instrument)
        return calls

    def watch_kernels(self, values: Mapping[str, Any], watch: Callable[[str, list[Argument]], None]) -> None:
        """Run once and call ``watch`` with the name and the arguments, results included, after each kernel."""

        def instrument(_function: Any, symbol: str, before: bool, _result: Any, *arguments: Any) -> int:
            if not before and not symbol.startswith(_BUILTIN):
                tensors = [argument for argument in arguments if hasattr(argument, "data_ptr")]
                watch(symbol, [self._argument(tensor) for tensor in tensors])
            return _NO_INSTRUMENT_ACTION

        self._run_instrumented(values, instrument)

    def _argument(self, tensor: Any) -> Argument:
        return Argument(self._device.fetch(tensor), tensor.data_ptr() in self._weight_addresses)

    def _run_instrumented(self, values: Mapping[str, Any], instrument: Callable[..., int]) -> None:
        arrays = self._check(values)
        set_instrument = self._machine.get_function("set_instrument")
        with self._lock:
            use_threads(self.threads)
            set_instrument(load_ffi().convert_func(instrument))
            try:
                self._call(arrays)
            finally:
                set_instrument(None)

    def _call(self, arrays: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        tensors = [self._device.place(array) for array in arrays]
        try:
            result = self._main(*tensors, *self._weights)
        except MemoryError:
            raise
        except Exception as error:
            raise _explain(error, self.inputs, arrays) from error
        results = [result] if hasattr(result, "data_ptr") else list(result)
        input_addresses = {tensor.data_ptr() for tensor in tensors}
        outputs = {}
        for spec, tensor in zip(self.outputs, results, strict=True):
            array, address = self._device.fetch(tensor), tensor.data_ptr()
            # An input or a weight passed through is copied: writing to the output must not change either.
            borrowed = address in input_addresses or address in self._weight_addresses
            outputs[spec.name] = array.copy() if borrowed else array
        return outputs


def _explain(error: Exception, inputs: Sequence[TensorSpec], arrays: Sequence[np.ndarray]) -> MoecError:
    """The program checks sizes that only it can relate (a size that must be the sum of two others, say); whatever else
    goes wrong in it is not the caller's fault."""
    reason = " ".join(str(error).split())
    sizes = ", ".join(f"{spec.name}{list(array.shape)}" for spec, array in zip(inputs, arrays, strict=True))
    if isinstance(error, ValueError) and any(check in reason for check in _SIZE_CHECKS):
        return InputError(f"the model cannot run on inputs of sizes {sizes}, which do not fit each other: {reason}")
    return DefectError(f"the compiled program failed on inputs of sizes {sizes}: {type(error).__name__}: {reason}")
