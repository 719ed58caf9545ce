"""Measurements of a loaded model: times and arguments of its kernels, and crossovers to try."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from moec.common.work import Argument
from moec.runtime.executor import Executor
from moec.runtime.program import BUILTIN, NO_INSTRUMENT_ACTION, Instrument

Watch = Callable[[str, list[Argument]], None]
"""Callback with the name and the arguments of a kernel's call."""


class Probe:
    """Measurements of one model. :attr:`moec.CompiledModel.probe` makes it."""

    def __init__(self, executor: Executor, crossovers: Mapping[str, np.ndarray]) -> None:
        """``crossovers``: the weights of rank 0 that hold them, by name."""
        self._executor, self._crossovers = executor, crossovers

    @property
    def crossovers(self) -> dict[str, int]:
        """Crossovers by shape: the number of rows from which a kernel with two ways takes the second; tokens on a
        GPU."""
        return {name: int(array.item()) for name, array in self._crossovers.items()}

    def set_crossovers(self, rows: Mapping[str, int]) -> None:
        """Change crossovers of this model alone, as long as it is measured; unknown names are ignored."""
        for name in self._crossovers.keys() & rows.keys():
            self._crossovers[name][...] = rows[name]
        self._executor.renew_numbers()

    def time_run(self, inputs: Mapping[str, Any]) -> float:
        """Measure the seconds of one run, kernel by kernel, without moving inputs to a GPU and outputs back."""
        return self._executor.time_run(inputs)

    def time_kernels(self, inputs: Mapping[str, Any]) -> list[tuple[str, float]]:
        """Run once and return the (name, seconds) of every kernel call in order, without views and allocations."""
        calls: list[tuple[str, float]] = []
        start = 0.0

        def instrument(_function: Any, symbol: str, before: bool, _result: Any, *_arguments: Any) -> int:
            nonlocal start
            if before:
                start = time.perf_counter()
            elif not symbol.startswith(BUILTIN):
                self._executor.finish()
                calls.append((symbol, time.perf_counter() - start))
            return NO_INSTRUMENT_ACTION

        self._executor.run_instrumented(inputs, instrument)
        return calls

    def shapes_of_calls(self, inputs: Mapping[str, Any]) -> list[tuple[str, list[tuple[int, ...]]]]:
        """Run once and return the (name, shapes of its tensors) of every kernel call in order."""
        calls: list[tuple[str, list[tuple[int, ...]]]] = []

        def instrument(_function: Any, symbol: str, before: bool, _result: Any, *arguments: Any) -> int:
            if before and not symbol.startswith(BUILTIN):
                calls.append((symbol, [tuple(tensor.shape) for tensor in tensors_of(arguments)]))
            return NO_INSTRUMENT_ACTION

        self._executor.run_instrumented(inputs, instrument)
        return calls

    def watch_kernels(self, inputs: Mapping[str, Any], watch: Watch, before: Watch | None = None) -> None:
        """Run once and call ``watch`` with the name and the arguments, results included, after each kernel. ``before``
        is called before it, when the results' memory still has its old contents."""
        self._executor.run_instrumented(inputs, self.watcher(watch, before))

    def watcher(self, watch: Watch, before: Watch | None = None) -> Instrument:
        """Make the instrument of :meth:`watch_kernels`."""

        def instrument(_function: Any, symbol: str, is_before: bool, _result: Any, *arguments: Any) -> int:
            callback = before if is_before else watch
            if callback is not None and not symbol.startswith(BUILTIN):
                callback(symbol, [self._executor.argument(tensor) for tensor in tensors_of(arguments)])
            return NO_INSTRUMENT_ACTION

        return instrument

    def instrumented(self, instrument: Instrument) -> contextlib.AbstractContextManager[None]:
        """Context in which all runs, sessions' too, go kernel by kernel, with ``instrument`` called before and after
        each call. No other thread may run the model meanwhile."""
        return self._executor.instrumented(instrument)

    def finish(self) -> None:
        """Wait until the device has finished."""
        self._executor.finish()


def tensors_of(arguments: tuple[Any, ...]) -> list[Any]:
    """Select the tensors among the arguments that an instrument gets."""
    return [argument for argument in arguments if hasattr(argument, "data_ptr")]
