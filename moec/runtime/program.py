"""A loaded program: runtime tensors in, runtime tensors out."""

from __future__ import annotations

import contextlib
import copy
import functools
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Protocol

from moec.common.errors import ArtifactError
from moec.runtime.expert_calls import register_calls
from moec.runtime.library import load_ffi, load_objects
from moec.runtime.loops import register_loops
from moec.runtime.program_run import ProgramRun, RowsDevice
from moec.runtime.rank_calls import register_rank_calls
from moec.runtime.ranks import OneRank, Ranks
from moec.runtime.streamed_weights import StreamedWeights
from moec.runtime.team import TEAM_OBJECT, Team
from moec.runtime.tensors import CPU
from moec.runtime.workers import team_here

BUILTIN = "vm.builtin."
NO_INSTRUMENT_ACTION = 0
_TAKES_MEMORY = f"{BUILTIN}alloc_storage"
_FIRST_DEVICE, _POOLED_ALLOCATOR = 0, 2
_GLOBALS = re.compile(r"^\s*Globals \(#\d+\): \[(.*)\]$", re.MULTILINE)
_HOSTS_OWN = frozenset(
    f"{BUILTIN}{name}"
    for name in (
        *("alloc_shape_heap", "match_shape", "make_shape", "shape_of", "match_prim_value", "make_prim_value"),
        *("check_tensor_info", "check_shape_info", "check_tuple_info", "check_prim_value_info", "check_func_info"),
        *("alloc_storage", "alloc_tensor", "reshape", "null_value", "copy", "call_tir_dyn"),
        *("make_tuple", "tuple_getitem", "tuple_reset_item"),
    )
)
"""Functions of the runtime that use sizes and addresses and never read results of the device."""

Instrument = Callable[..., int]
"""Callback before and after each call with the function, its name, whether it is before, the result and the
arguments."""


class ProgramDevice(RowsDevice, Protocol):
    """The part of :class:`moec.runtime.device.Device` that loading a program needs."""

    @property
    def number(self) -> int:
        """Kind of device, by DLPack's numbers."""
        ...

    def loading(self) -> contextlib.AbstractContextManager[None]:
        """Context in which a program's objects can be loaded."""
        ...


class LoadedProgram:
    """The program in linked object files. Two threads must not run it at once."""

    def __init__(
        self,
        objects: Sequence[pathlib.Path],
        where: str,
        device: ProgramDevice,
        streamed: StreamedWeights | None = None,
    ) -> None:
        """``streamed``: source of the weights that it streams. Raises ArtifactError where the objects do not link, and
        the device's errors for code it cannot run."""
        self.where, self._device = where, device
        self.streamed = streamed
        self.ranks: Ranks = OneRank()
        register_calls()
        register_rank_calls()
        register_loops()
        with device.loading():
            self._module = load_objects(objects, where)
        self._team_code = next((path for path in objects if path.name == TEAM_OBJECT), None)
        self._join = self._module.get_function("moec_join_team", query_imports=True) if self.has_team else None
        self._joined: Team | Literal["not yet"] | None = "not yet"
        # The machine's last device is its host.
        kinds = dict.fromkeys((device.number, CPU))
        self._places = [number for kind in kinds for number in (kind, _FIRST_DEVICE, _POOLED_ALLOCATOR)]
        self._begin()
        self._several = load_ffi().Array
        self._kernels: dict[str, Any] = {}

    def _begin(self) -> None:
        self._machine = self._module.get_function("vm_load_executable")()
        self._machine.get_function("vm_initialization")(*self._places)
        self._main = self._machine.get_function("main")

    def twin(self) -> LoadedProgram:
        """Make a program of the same code that may run while a callback of this one waits, with ranks of its own."""
        other = copy.copy(self)
        other.ranks = OneRank()
        other._begin()
        return other

    def __call__(self, inputs: Sequence[Any], weights: Sequence[Any]) -> Sequence[Any]:
        """Run the program and return its results; each access to one takes time. The caller's threads share the loops:
        :func:`moec.runtime.workers.team_here`."""
        self._join_team()
        run = ProgramRun(self._machine, self.ranks, self._device, self.streamed)
        result = run.call(self._main, *inputs, *weights)
        return result if isinstance(result, self._several) else [result]

    def call_kernel(self, name: str, arguments: Sequence[Any]) -> None:
        """Call one of the program's kernels for its runtime. Raises ArtifactError where there is none of that name."""
        self._join_team()
        if name not in self._kernels:
            try:
                self._kernels[name] = self._module.get_function(name, query_imports=True)
            except AttributeError as error:
                raise ArtifactError(f"{self.where}: its program has no kernel {name[:80]!r}; it was altered") from error
        self._kernels[name](*arguments)

    @contextlib.contextmanager
    def keeping_memory(self) -> Iterator[list[Any]]:
        """Context with a list that gets references to all memory that the program allocates inside."""
        memory: list[Any] = []

        def keep(_function: Any, symbol: str, before: bool, result: Any, *_arguments: Any) -> int:
            if not before and symbol == _TAKES_MEMORY:
                memory.append(result)
            return NO_INSTRUMENT_ACTION

        with self.instrumented(keep):
            yield memory

    def _join_team(self) -> None:
        if self._join is not None and self._team_code is not None:
            team = team_here(self._team_code)
            if team is not self._joined:
                self._join(0 if team is None else team.address)
                self._joined = team

    @property
    def has_team(self) -> bool:
        """Whether the program has code to share its loops among a team of the process."""
        return self._team_code is not None

    @functools.cached_property
    def waits(self) -> list[str]:
        """Functions by which the host part reads results of the device, such as the sizes of other results."""
        listed = _GLOBALS.search(self._module.get_function("stats")())
        assert listed is not None, "the runtime lists the functions that a program calls"
        names = listed[1].split(", ")
        return [name for name in names if name.startswith(BUILTIN) and name not in _HOSTS_OWN]

    @contextlib.contextmanager
    def instrumented(self, instrument: Instrument) -> Iterator[None]:
        """Context in which ``instrument`` is called around every call."""
        set_instrument = self._machine.get_function("set_instrument")
        set_instrument(load_ffi().convert_func(instrument))
        try:
            yield
        finally:
            set_instrument(None)
