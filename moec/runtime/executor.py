"""Execution of a loaded program on arrays: inputs are checked, results belong to the caller, and calls take turns."""

from __future__ import annotations

import contextlib
import copy
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from moec.common.errors import ArtifactError, InputError, MoecError, UnsupportedError, one_line
from moec.common.specs import HeldState, LastTokens, TensorSpec
from moec.common.work import Argument
from moec.runtime.baton import Baton
from moec.runtime.device import Device, Host
from moec.runtime.device_results import DeviceResults, Ending
from moec.runtime.held import HeldStates
from moec.runtime.inputs import InputCheck
from moec.runtime.interface import Interface
from moec.runtime.library import load_ffi
from moec.runtime.machine import check_threads
from moec.runtime.on_device import OnDevice, handed_out
from moec.runtime.pages import FileMaps
from moec.runtime.program import Instrument, LoadedProgram
from moec.runtime.program_errors import NOT_AS_LISTED, failed_run
from moec.runtime.ranks import Ranks
from moec.runtime.state_memory import StateMemory
from moec.runtime.streamed_weights import StreamedWeights
from moec.runtime.workers import FairLock, Launcher

StatePages = Mapping[str, Any]
"""Pages of each state that a program holds, as the runtime's tensor, by the name of the input."""


class Executor:
    """One loaded program. ``run`` may be called from several threads. Calls on one executor take turns in the order in
    which they come, because each uses all its threads anyway (:mod:`moec.runtime.workers`).

    ``weights`` are passed without copying, so they must stay C-contiguous and 16-byte aligned; those of rank 0 are
    numbers for the host's part, passed by value, see :meth:`renew_numbers`. ``threads`` is at most the number of
    available cores, which is also the meaning of None. ``device``: where it runs; None is the host. ``cuda_graphs``:
    launch runs of repeated sizes as a whole. ``held_states``: states for which the program takes pages;
    ``lengths_in_memory``: whether it takes their lengths as tensors, too; ``fixed_lengths``: whether a captured run
    serves the lengths of its capture alone. ``last``: output of which it computes only
    the requested last positions. ``streamed``: source of weights that are not all in memory. ``files``: object whose
    end removes the objects, which the program reads until its first run; it lives as long as the executor.
    """

    def __init__(
        self,
        objects: Sequence[pathlib.Path],
        interface: Interface,
        weights: Sequence[np.ndarray],
        *,
        threads: int | None = None,
        where: str = "program",
        device: Device | None = None,
        cuda_graphs: bool = False,
        held_states: Sequence[HeldState] = (),
        lengths_in_memory: bool = False,
        fixed_lengths: bool = False,
        last: LastTokens | None = None,
        streamed: StreamedWeights | None = None,
        files: object = None,
    ) -> None:
        """Raise ArtifactError where the objects do not link, UnsupportedError where graphs are not available, and the
        device's errors for code that it cannot run and weights that it cannot hold."""
        self.inputs, self.outputs, self._where = tuple(interface.inputs), tuple(interface.outputs), where
        self._files = files
        self.threads = check_threads(threads)
        self._device = device or Host()
        self._check = InputCheck(self.inputs, self._device.number, interface.guards)
        self._held = (
            HeldStates(held_states, self.inputs, self.outputs, lengths_in_memory=lengths_in_memory)
            if held_states
            else None
        )
        reduced = self._held.size_inputs if self._held is not None else self.inputs
        self._captures_sessions = lengths_in_memory and not fixed_lengths
        self.sampler = "" if last is None or device is None else last.sample
        """The program's kernel that selects tokens; empty where there is none."""
        self._tokens = None if last is None else [_place(last.input, specs) for specs in (self.inputs, reduced)]
        self._check_told = InputCheck(reduced, self._device.number, interface.guards)
        self._weight_arrays = list(weights)
        self._maps = FileMaps(weights)
        try:
            self._program = LoadedProgram(objects, where, self._device, streamed)
            self._weights = [self._device.place(array) if array.ndim else int(array) for array in weights]
        except MoecError:
            raise
        except Exception as error:
            raise self._device.explain(error) or ArtifactError(
                f"{where}: its program cannot be loaded: {one_line(error)}; it was altered: compile the model again"
            ) from error
        self.placed_weights: Sequence[Any] = self._weights  # as programs take them, for another one on the same device
        # A device computes without threads of ours, and its current stream is the calling thread's.
        self._launcher = Launcher(self.threads if device is None else 1, has_team=self._program.has_team)
        tensors = [weight for weight in self._weights if not isinstance(weight, int)]
        self._weight_addresses = frozenset(tensor.data_ptr() for tensor in tensors)
        self._captured = self._device.captured_runs(self._program, self._weights) if cuda_graphs else None
        if cuda_graphs and self._captured is None:
            raise UnsupportedError(f"{where}: CUDA graphs need a GPU; load it without cuda_graphs")
        self._place = self._device.placing()
        self._memory_of_callers: list[Any] = []
        """Memory of runs that callers captured in graphs of their own, which write there whenever they are launched."""
        self.is_apart = device is not None
        self._waits = self.is_apart and bool(self._program.waits)

    def run(self, values: Mapping[str, Any], last: int | None = None, ending: Ending | None = None) -> Any:
        """Compute the outputs by name: arrays, or tensors on the device where an input was one.

        ``last``: number of last tokens whose logits are computed, where the program can omit others; None for all.
        ``ending``: what it returns in their place, made of the results on the device. Raises InputError for values that
        do not fit the inputs' specifications or that the program cannot combine, MoecError for limits of the device,
        and DefectError when it fails for any other reason.
        """
        arrays = self._check(values)
        return self._launcher.run(lambda: self._call(arrays, last=last, ending=ending))

    def twin(self) -> Executor:
        """Make an executor of the same program and weights that may run in turn with this one."""
        other = copy.copy(self)
        other._program = self._program.twin()
        return other

    @property
    def turns(self) -> FairLock:
        """The turns that its calls take."""
        return self._launcher.turns

    @property
    def streamed(self) -> StreamedWeights | None:
        """Weights that are not all in memory; None where all are."""
        return self._program.streamed

    def baton(self) -> Baton:
        """Make a baton for :meth:`in_turn`."""
        return self._launcher.baton()

    def in_turn(self, baton: Baton, first: Callable[[], Any], second: Callable[[], Any]) -> tuple[Any, Any]:
        """Run two works that pass the ``baton`` and run this program and its :meth:`twin`, and return both results."""
        return self._launcher.in_turn(baton, first, second)

    def checked(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the inputs of a run as arrays. Raises InputError as :meth:`run`."""
        return dict(zip((spec.name for spec in self.inputs), self._check(values), strict=True))

    def exchange_rows(self, ranks: Ranks) -> None:
        """Let runs exchange rows of experts with other ranks."""
        self._program.ranks = ranks

    @property
    def held(self) -> Sequence[HeldState]:
        """States that the program can keep in place."""
        return self._held.states if self._held is not None else ()

    def state_memory(self, shapes: Mapping[str, Sequence[int]], tokens: int | None) -> StateMemory:
        """Allocate memory where the program runs for the states that have a shape; see :class:`StateMemory`."""
        states = [state for state in self.held if state.input in shapes]
        with self._device.working([]):
            return StateMemory(states, shapes, tokens, self._device)

    def run_in_place(
        self, values: Mapping[str, Any], memory: StateMemory, last: int | None = None, ending: Ending | None = None
    ) -> Any:
        """Run like :meth:`run`, with the held states in ``memory`` instead of inputs and outputs. New entries are
        appended there. After a failure the states are unchanged, except for data written over states that are written
        at places."""
        assert self._held is not None, "a program that holds states"
        reduced = self._check_told({**values, **self._held.stand_ins(memory.shape)})
        growths = self._held.growths(reduced)
        pages = self._working(lambda: memory.pages(growths), reduced, {})
        with memory.growing(growths):
            return self._launcher.run(lambda: self._call(reduced, memory=memory, pages=pages, last=last, ending=ending))

    def renew_numbers(self) -> None:
        """Read weights of rank 0 again after the caller has changed their arrays. Captured runs are dropped."""
        with self.turns:
            for position, array in enumerate(self._weight_arrays):
                if not array.ndim:
                    self._weights[position] = int(array)
            if self._captured is not None:
                self._captured.forget()

    def time_run(self, values: Mapping[str, Any]) -> float:
        """Run once, kernel by kernel, and return the seconds from the placed inputs to the finished results."""
        arrays = self._check(values)
        return self._launcher.run(lambda: self._timed_call(arrays))

    def _timed_call(self, arrays: Sequence[np.ndarray | OnDevice]) -> float:
        def timed() -> float:
            tensors = self._placed(self._arguments(arrays))
            self._device.finish()
            start = time.perf_counter()
            self._program(tensors, self._weights)
            self._device.finish()
            return time.perf_counter() - start

        return self._working(timed, arrays)

    def argument(self, tensor: Any) -> Argument:
        """Copy an argument of a kernel's call to the host."""
        return Argument(self._device.fetch(tensor), tensor.data_ptr() in self._weight_addresses)

    def finish(self) -> None:
        """Wait until the device has finished."""
        self._device.finish()

    def run_instrumented(self, values: Mapping[str, Any], instrument: Instrument) -> None:
        """Run once, kernel by kernel, with ``instrument`` called before and after each call."""
        arrays = self._check(values)
        self._launcher.run(lambda: self._instrumented_call(arrays, instrument))

    def _instrumented_call(self, arrays: Sequence[np.ndarray | OnDevice], instrument: Instrument) -> None:
        with self.instrumented(instrument):
            self._call(arrays)

    @contextlib.contextmanager
    def instrumented(self, instrument: Instrument) -> Iterator[None]:
        """Context in which runs go kernel by kernel, with ``instrument`` called before and after each call. No other
        thread may run the program meanwhile."""
        captured, self._captured = self._captured, None
        try:
            with self._program.instrumented(instrument):
                yield
        finally:
            self._captured = captured

    def _call(
        self,
        arrays: Sequence[np.ndarray | OnDevice],
        *,
        memory: StateMemory | None = None,
        pages: StatePages | None = None,
        last: int | None = None,
        ending: Ending | None = None,
    ) -> Any:
        def results() -> Any:
            if not self._device.is_capturing:
                return self._results(arrays, memory, pages, last, ending)
            with self._captured_by_caller(arrays):
                return self._results(arrays, memory, pages, last, ending)

        return self._working(results, arrays, pages)

    def _results(
        self,
        arrays: Sequence[np.ndarray | OnDevice],
        memory: StateMemory | None,
        pages: StatePages | None,
        last: int | None,
        ending: Ending | None,
    ) -> Any:
        results, borrowed = self._compute(arrays, memory, pages, last)
        if self._held is not None and pages is None:
            results |= self._held.results(results, self.outputs, self._device, self._program.call_kernel)
        if ending is not None:
            named = {self.outputs[at].name: result for at, result in results.items()}
            lent = {self.outputs[at].name for at in borrowed}
            return ending(DeviceResults(self._device, named, lent, self._program.call_kernel))
        if self.is_apart and any(isinstance(array, OnDevice) for array in arrays):
            copy = self._device.copy
            outputs = [handed_out(result, arrays, copy if at in borrowed else None) for at, result in results.items()]
        else:
            outputs = self._device.fetch_all([*results.values()])
        if not self.is_apart:
            outputs = [output.copy() if at in borrowed else output for at, output in zip(results, outputs, strict=True)]
        return {self.outputs[at].name: output for at, output in zip(results, outputs, strict=True)}

    @contextlib.contextmanager
    def _captured_by_caller(self, arrays: Sequence[np.ndarray | OnDevice]) -> Iterator[None]:
        """Context of a run that a caller is capturing in a graph of its own. What the run allocates stays, and graphs
        of the program itself are not used. Raises InputError for arrays that the graph could not read again."""
        for spec, array in zip(self.inputs, arrays, strict=False):
            if isinstance(array, np.ndarray) and array.size:
                raise InputError(
                    f"input {spec.name!r} is in host memory while the model is captured in a CUDA graph, which would "
                    "keep its present numbers: move it with .cuda() before the capture"
                )
        captured, self._captured = self._captured, None
        try:
            with self._program.keeping_memory() as memory:
                yield
            self._memory_of_callers.append(memory)
        finally:
            self._captured = captured

    def _working(
        self, work: Callable[[], Any], arrays: Sequence[np.ndarray | OnDevice], pages: StatePages | None = None
    ) -> Any:
        """Do ``work``, which runs the program on ``arrays``, and translate its errors."""
        self._maps.check(self._where)
        try:
            with self._device.working(arrays, waits=self._waits):
                return work()
        except (MoecError, MemoryError):
            raise
        except Exception as error:
            specs = self.inputs if self._held is None or pages is None else self._held.size_inputs
            shapes = {spec.name: array.shape for spec, array in zip(specs, arrays, strict=True)}
            raise self._device.explain(error) or failed_run(error, self._where, shapes) from error

    def _arguments(self, arrays: Sequence[np.ndarray | OnDevice], last: int | None = None) -> list[Any]:
        """Collect the arguments before the weights: arrays to be placed, and among those after the inputs shapes."""
        counts = self._wanted(arrays, last)
        if self._held is None:
            return [*arrays, *counts]
        return [*self._held.with_pages(arrays, self._device, self._program.call_kernel), *counts]

    def _placed(self, arguments: Sequence[Any]) -> list[Any]:
        """Move the arrays among the arguments to the device. Pages of states become results, so each has memory of its
        own."""
        placed = list(arguments)
        arrays = [at for at, argument in enumerate(arguments) if isinstance(argument, (np.ndarray, OnDevice))]
        states = frozenset(() if self._held is None else self._held.inputs)
        for at in arrays:
            if at in states:
                placed[at] = self._device.place(arguments[at])
        others = [at for at in arrays if at not in states]
        for at, tensor in zip(others, self._place([arguments[at] for at in others]), strict=True):
            placed[at] = tensor
        return placed

    def _wanted(
        self, arrays: Sequence[np.ndarray | OnDevice], last: int | None, *, in_place: bool = False
    ) -> list[Any]:
        """List the number of tokens whose logits are computed, where the program takes it; by default all of them."""
        if self._tokens is None:
            return []
        count = arrays[self._tokens[in_place]].shape[1]
        if last is not None and not 0 <= last <= count:
            raise InputError(f"logits of the last {last} tokens are wanted, of {count} that the model is run on")
        return [load_ffi().Shape([count if last is None else last])]

    def _compute(
        self,
        arrays: Sequence[np.ndarray | OnDevice],
        memory: StateMemory | None,
        pages: StatePages | None,
        last: int | None,
    ) -> tuple[dict[int, Any], set[int]]:
        """Compute the results, except states in ``pages``, by position. Also returns the positions of those that have
        to be copied for the caller."""
        if self._held is not None and pages is not None:
            return self._compute_in_place(self._held, arrays, memory, pages, last)
        arguments = self._arguments(arrays, last)
        return self._replayed(arguments, self, range(len(self.outputs))) or self._found(
            self._placed(arguments), range(len(self.outputs))
        )

    def _compute_in_place(
        self,
        states: HeldStates,
        arrays: Sequence[np.ndarray | OnDevice],
        memory: StateMemory | None,
        pages: StatePages,
        last: int | None,
    ) -> tuple[dict[int, Any], set[int]]:
        counts, released = self._wanted(arrays, last, in_place=True), {} if memory is None else memory.released
        if self._captures_sessions and self._captured is not None:
            # Where the longest states are refused, such as positions beyond a table, runs go kernel by kernel.
            with contextlib.suppress(ValueError):
                replayed = self._replayed(
                    [*states.longest(arrays, pages, released), *counts], memory, states.other_outputs
                )
                if replayed is not None:
                    return replayed
        return self._found(self._placed([*states.in_place(arrays, pages, released), *counts]), states.other_outputs)

    def _replayed(
        self, arguments: Sequence[Any], owner: Any, indices: Sequence[int]
    ) -> tuple[dict[int, Any], set[int]] | None:
        replayed = None if self._captured is None else self._captured.replay(arguments, owner)
        return None if replayed is None else ({at: replayed[at] for at in indices}, set(indices))

    def _found(self, arguments: Sequence[Any], indices: Sequence[int]) -> tuple[dict[int, Any], set[int]]:
        results = self._program(arguments, self._weights)
        if len(results) != len(self.outputs):
            raise ArtifactError(f"{self._where}: its program computes {len(results)} outputs; {NOT_AS_LISTED}")
        outputs = {at: results[at] for at in indices}
        # An input or a weight that is passed through is copied, because writing to the output must not change it.
        positions = self._held.other_inputs if self._held is not None else range(len(self.inputs))
        inputs, kept = {arguments[at].data_ptr() for at in positions}, self._weight_addresses
        return outputs, {
            at for at, output in outputs.items() if (address := output.data_ptr()) in inputs or address in kept
        }


def _place(name: str, specs: Sequence[TensorSpec]) -> int:
    return [spec.name for spec in specs].index(name)
