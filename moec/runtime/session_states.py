"""The states of a session: held in place where the program can, else fed back from run to run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from moec.common.dtypes import dtype_of
from moec.common.errors import InputError
from moec.common.guards import parse_size
from moec.common.specs import HeldState, State, TensorSpec
from moec.runtime.device_results import DeviceResults, Ending
from moec.runtime.interface import Interface
from moec.runtime.roles import Roles, first_shape, room_of
from moec.runtime.saved_session import checked_state
from moec.runtime.state_memory import StateMemory


class Runner(Protocol):
    """Program that a session runs: a whole one (:class:`moec.runtime.executor.Executor`), or the stages of a pipeline,
    of which the program here is one. ``inputs``: those of the program here. ``is_apart``: whether results are on a
    device until they are fetched. ``sampler``: its kernel that selects tokens,
    empty where there is none. ``ending``: what a run returns in place of arrays, made of the results on the device."""

    @property
    def inputs(self) -> Sequence[TensorSpec]: ...

    @property
    def held(self) -> Sequence[HeldState]: ...

    def state_memory(self, shapes: Mapping[str, Sequence[int]], tokens: int | None) -> StateMemory: ...

    @property
    def is_apart(self) -> bool: ...

    @property
    def sampler(self) -> str: ...

    def run(self, values: Mapping[str, Any], last: int | None = None, ending: Ending | None = None) -> Any: ...

    def run_in_place(
        self, values: Mapping[str, Any], memory: StateMemory, last: int | None = None, ending: Ending | None = None
    ) -> Any: ...


@dataclasses.dataclass(frozen=True)
class RememberedStates:
    """States that each run replaces, by input, after ``length`` tokens."""

    length: int
    arrays: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class SessionStates:
    """The ``states`` between two runs; a run that fails leaves them unchanged.

    ``arrays``: states that each run takes and returns, by input. ``rooms``: number of tokens that fit, for states of a
    constant size (caches with room), by input. ``memory``: states that the program holds. ``stepwise``: see
    :class:`Interface`. ``remembered``: these states as they were after fewer tokens.
    """

    executor: Runner
    states: Sequence[State]
    arrays: Mapping[str, Any]
    rooms: Mapping[str, int]
    memory: StateMemory | None
    stepwise: Sequence[str] = ()
    remembered: RememberedStates | None = None

    def __bool__(self) -> bool:
        return bool(self.states)

    @classmethod
    def empty(
        cls, interface: Interface, executor: Runner, roles: Roles, max_tokens: int | None, batch: int
    ) -> SessionStates:
        """Make the states before the first token: zeros. Raises InputError for states of an unknown size."""
        inputs, outputs = ({spec.name: spec for spec in specs} for specs in (interface.inputs, interface.outputs))
        sizes = _known_sizes(roles.ids, interface.sizes, batch)
        cached = {state.input: state for state in executor.held}
        if not cached.keys() <= {state.input for state in interface.states}:
            cached = {}  # some are not states of a session, which passes them to each run
        arrays, rooms, shapes = {}, {}, {}
        here = {spec.name for spec in executor.inputs}  # another stage of a pipeline has the others
        for state in interface.states:
            spec, axis = inputs[state.input], state.axis
            room = room_of(axis, spec, outputs[state.output])
            if isinstance(room, str) and max_tokens is None:
                raise InputError(f"state {state} has room for as many tokens as it is told; give max_tokens")
            tokens = max_tokens if isinstance(room, str) else room
            own = {**sizes, **({spec.shape[0]: batch} if axis != 0 and isinstance(spec.shape[0], str) else {})}
            shape = first_shape(spec, axis, own, tokens)
            if tokens is not None:
                rooms[state.input] = tokens
            if state.input in cached:
                shapes[state.input] = shape
            elif state.input in here:
                arrays[state.input] = np.zeros(shape, dtype_of(spec.dtype))
        memory = executor.state_memory(shapes, max_tokens) if shapes else None
        return cls(executor, interface.states, arrays, rooms, memory, interface.stepwise)

    @property
    def room(self) -> int | None:
        """Number of tokens that fit; None where there is no limit."""
        return min(self.rooms.values(), default=None)

    @property
    def bytes_in_use(self) -> int:
        """Bytes of the states: of arrays, and of pages in use."""
        held_bytes = 0 if self.memory is None else self.memory.bytes_in_use
        return held_bytes + sum(array.nbytes for array in self.arrays.values())

    def sizes(self, interface: Interface, ids: TensorSpec, batch: int, new: int, length: int) -> dict[str, int]:
        """Named sizes of a run on ``new`` tokens of each sequence, where states hold ``length``."""
        sizes: dict[Any, int] = dict(zip(ids.shape, (batch, new), strict=True))
        specs = {spec.name: spec for spec in interface.inputs}
        for state in self.states:
            for axis, size in enumerate(specs[state.input].shape):
                sizes.setdefault(size, self.rooms.get(state.input, length) if axis == state.axis else batch)
        for name, total in interface.sizes.items():
            expression = parse_size(total)
            if name not in sizes and set(expression.names) <= sizes.keys():
                sizes[name] = expression(sizes)
        return {name: size for name, size in sizes.items() if isinstance(name, str)}

    def run(self, inputs: Mapping[str, Any], last: int, ending: Ending | None = None) -> tuple[Any, SessionStates]:
        """Run the model. Returns its outputs, with logits of the ``last`` tokens or of more, or what ``ending`` makes
        of them, and the states after it."""
        values = {**inputs, **self.arrays}
        kept = {state.input: state.output for state in self.states if state.input in self.arrays}

        def with_states(results: DeviceResults) -> tuple[Any, dict[str, Any]]:
            assert ending is not None
            arrays = results.device.fetch_all([results.tensors[output] for output in kept.values()])
            return ending(results), dict(zip(kept.values(), arrays, strict=True))

        taken = None if ending is None else with_states
        if self.memory is None:
            outputs = self.executor.run(values, last, taken)
        else:
            outputs = self.executor.run_in_place(values, self.memory, last, taken)
        returned, outputs = (outputs, outputs) if ending is None else outputs
        arrays = {name: outputs[output] for name, output in kept.items()}
        return returned, dataclasses.replace(self, arrays=arrays) if kept else self

    def fork(self) -> SessionStates:
        """Copy the states for another session."""
        return dataclasses.replace(self, memory=None if self.memory is None else self.memory.copy())

    @property
    def are_here(self) -> bool:
        """Whether all of them are in the memory of this process."""
        names = self.arrays.keys() | ({} if self.memory is None else self.memory.lengths).keys()
        return not self.executor.is_apart and names == {state.input for state in self.states}

    def saved(self, length: int) -> dict[str, np.ndarray]:
        """Copy the states after ``length`` tokens, by input. Raises InputError for one that holds another number of
        tokens."""
        lengths = {} if self.memory is None else self.memory.lengths
        for name, own_length in lengths.items():
            if name not in self.rooms and own_length != length:
                raise InputError(f"state {name!r} holds {own_length} of {length} tokens, and cannot be saved so")
        return {**self.arrays, **({} if self.memory is None else self.memory.saved())}

    def loaded(self, saved: Mapping[str, np.ndarray], length: int) -> SessionStates:
        """Take the states that :meth:`saved` copied in place of those before the first token. Raises InputError where
        one has another type or shape, is missing, or is of no use."""
        names = {state.input for state in self.states}
        if not saved.keys() <= names:
            raise InputError(
                f"the file of the session has a state {min(saved.keys() - names)!r}, which the model has not"
            )
        if self.memory is not None:
            self.memory.load(saved, length)
        arrays = {}
        for state in self.states:
            name, axis = state.input, state.axis
            if name in self.arrays:
                shape = list(self.arrays[name].shape)
                if axis is not None and name not in self.rooms:
                    shape[axis] = length
                arrays[name] = np.ascontiguousarray(
                    checked_state(name, saved.get(name), shape, self.arrays[name].dtype)
                )
        return dataclasses.replace(self, arrays=arrays)

    def remembering(self, length: int) -> SessionStates:
        """Copy that :meth:`truncated` can bring back to these states, which are after ``length`` tokens."""
        arrays = {state.input: self.arrays[state.input] for state in self.states if self._can_be_remembered(state)}
        return dataclasses.replace(self, remembered=RememberedStates(length, arrays))

    def _can_be_remembered(self, state: State) -> bool:
        """Whether each run makes a new array of a state on the host, to which tokens can be added again."""
        return state.input in self.stepwise and state.input in self.arrays and not self.executor.is_apart

    def check_truncation(self, before: int, *, to_remembered: bool = False) -> None:
        """Raise InputError for a state from which none of ``before`` tokens can be removed. ``to_remembered``: to the
        states that were remembered, or that can be."""
        lengths = {} if self.memory is None else self.memory.lengths
        for state in self.states:
            if to_remembered and self._can_be_remembered(state):
                continue
            name, axis = state.input, state.axis
            own_length = lengths.get(name) if axis is None or name in lengths else self.arrays[name].shape[axis]
            if axis is None or (name not in self.rooms and own_length != before):
                raise InputError(f"the session cannot be truncated: state {state}; fork it before the tokens to forget")

    def truncated(self, length: int, before: int) -> SessionStates:
        """Keep the first ``length`` of ``before`` tokens. Raises InputError for a state from which tokens cannot be
        removed."""
        if length == before:
            return self
        remembered = self.remembered if self.remembered is not None and self.remembered.length == length else None
        self.check_truncation(before, to_remembered=remembered is not None)
        shortest = 0 if self.memory is None else self.memory.shortest
        if 0 < length < shortest:
            raise InputError(
                f"the session cannot be truncated to {length} tokens: layers with a window keep the last keys alone; "
                f"expected {shortest} tokens or more, or 0; fork it before the tokens to forget"
            )
        arrays = {} if remembered is None else dict(remembered.arrays)
        for state in self.states:
            name, axis = state.input, state.axis
            if name in self.arrays and axis is not None:
                array = self.arrays[name]
                kept = array if name in self.rooms else array[(slice(None),) * axis + (slice(length),)]
                arrays[name] = np.ascontiguousarray(kept)
        if self.memory is not None:
            self.memory.truncate(length)
        return dataclasses.replace(self, arrays=arrays)


def _known_sizes(ids: TensorSpec, sums: Mapping[str, str], batch: int) -> dict[str, int]:
    sizes = {ids.shape[0]: batch} if isinstance(ids.shape[0], str) else {}
    if isinstance(ids.shape[0], int) and ids.shape[0] != batch:
        raise InputError(
            f"the model is for {ids.shape[0]} sequences side by side, and batch is {batch}; make it for as many"
        )
    return {**sizes, **{name: batch for name, total in sums.items() if total in sizes}}
