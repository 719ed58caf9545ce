"""The states of a session: held in place where the program can, else fed back from run to run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from moec.common.dtypes import dtype_of
from moec.common.errors import InputError
from moec.common.specs import TensorSpec
from moec.runtime.held import StateMemory
from moec.runtime.roles import Roles, first_shape, room_of

if TYPE_CHECKING:
    from moec.runtime.model import CompiledModel


class SessionStates:
    """The states between two runs; a run that fails leaves them unchanged.

    ``arrays``: states that each run takes and returns, by input. ``rooms``: number of tokens that fit, for states of a
    constant size (caches with room), by input. ``memory``: states that the program holds.
    """

    def __init__(
        self, model: CompiledModel, arrays: Mapping[str, Any], rooms: Mapping[str, int], memory: StateMemory | None
    ) -> None:
        self._model, self._arrays, self._rooms, self._memory = model, arrays, rooms, memory

    def __bool__(self) -> bool:
        return bool(self._model.states)

    @classmethod
    def empty(cls, model: CompiledModel, roles: Roles, max_tokens: int | None, batch: int) -> SessionStates:
        """Make the states before the first token: zeros. Raises InputError for states of an unknown size."""
        inputs, outputs = ({spec.name: spec for spec in specs} for specs in (model.inputs, model.outputs))
        sizes = _known_sizes(roles.ids, model.input_sizes, batch)
        cached = {state.input: state for state in model.held}
        if not cached.keys() <= {state.input for state in model.states}:
            cached = {}  # some are not states of a session, which passes them to each run
        arrays, rooms, shapes = {}, {}, {}
        for state in model.states:
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
            else:
                arrays[state.input] = np.zeros(shape, dtype_of(spec.dtype))
        return cls(model, arrays, rooms, model.state_memory(shapes, max_tokens) if shapes else None)

    @property
    def room(self) -> int | None:
        """Number of tokens that fit; None where there is no limit."""
        return min(self._rooms.values(), default=None)

    def run(self, inputs: Mapping[str, Any], last: int) -> tuple[dict[str, Any], SessionStates]:
        """Run the model. Returns its outputs, with logits of the ``last`` tokens or of more, and the states after
        it."""
        values, memory = {**inputs, **self._arrays}, self._memory
        if memory is None:
            outputs = self._model.run(values, last=last)
        else:
            outputs = self._model.run_in_place(values, memory, last=last)
        if not self._arrays:
            return outputs, self
        arrays = {state.input: outputs[state.output] for state in self._model.states if state.input in self._arrays}
        return outputs, self._with(arrays)

    def fork(self) -> SessionStates:
        """Copy the states for another session."""
        copied = self._memory.copy() if self._memory is not None else None
        return SessionStates(self._model, self._arrays, self._rooms, copied)

    def _with(self, arrays: Mapping[str, Any]) -> SessionStates:
        return SessionStates(self._model, arrays, self._rooms, self._memory)

    def truncated(self, length: int, before: int) -> SessionStates:
        """Keep the first ``length`` of ``before`` tokens. Raises InputError for a state from which tokens cannot be
        removed."""
        if length == before:
            return self
        lengths = {} if self._memory is None else self._memory.lengths
        arrays = {}
        for state in self._model.states:
            name, axis = state.input, state.axis
            own_length = lengths.get(name) if axis is None or name in lengths else self._arrays[name].shape[axis]
            if axis is None or (name not in self._rooms and own_length != before):
                raise InputError(f"the session cannot be truncated: state {state}; fork it before the tokens to forget")
            if name not in lengths:
                array = self._arrays[name]
                kept = array if name in self._rooms else array[(slice(None),) * axis + (slice(length),)]
                arrays[name] = np.ascontiguousarray(kept)
        if self._memory is not None:
            self._memory.truncate(length)
        return self._with(arrays)


def _known_sizes(ids: TensorSpec, sums: Mapping[str, str], batch: int) -> dict[str, int]:
    sizes = {ids.shape[0]: batch} if isinstance(ids.shape[0], str) else {}
    if isinstance(ids.shape[0], int) and ids.shape[0] != batch:
        raise InputError(f"the model is for {ids.shape[0]} sequences side by side, and batch is {batch}")
    return {**sizes, **{name: batch for name, total in sums.items() if total in sizes}}
