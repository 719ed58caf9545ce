"""States before the first token, for a run that is given none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moec.common.dtypes import dtype_of
from moec.common.specs import State, TensorSpec
from moec.errors import InputError
from moec.runtime.roles import first_shape, room_of


class FirstStates:
    """Those of one model: zeros, of no tokens where they grow."""

    def __init__(self, states: Sequence[State], inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
        named, made = ({spec.name: spec for spec in specs} for specs in (inputs, outputs))
        self._axes = {state.input: state.axis for state in states}
        self._specs = {name: named[name] for name in self._axes}
        self.others = [spec for spec in inputs if spec.name not in self._axes]
        """The inputs beside the states."""
        # How large a cache with room is, nothing tells but the cache.
        rooms = (room_of(state.axis, named[state.input], made[state.output]) for state in states)
        self._have_room = any(isinstance(room, str) for room in rooms)

    def beside(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """The inputs of a run, with all states where ``values`` has none of them and tells their sizes."""
        if not self._axes or not isinstance(values, Mapping) or self._axes.keys() & values.keys():
            return values
        sizes: dict[str, int] = {}
        for spec in self.others:
            found = getattr(values.get(spec.name), "shape", ())
            sizes |= {size: int(one) for size, one in zip(spec.shape, found, strict=False) if isinstance(size, str)}
        try:
            shapes = self.shapes(sizes)
        except InputError:
            return values  # which are refused as they are
        return {
            **values,
            **{name: np.zeros(shape, dtype_of(self._specs[name].dtype)) for name, shape in shapes.items()},
        }

    def shapes(self, sizes: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
        """The shapes of the states by name, where the other inputs have these named sizes: numbers, or PyTorch's
        symbols. Raises InputError where these do not tell."""
        if self._have_room:
            raise InputError("states with room have a size that nothing but the states tells; give them as inputs")
        return {name: first_shape(spec, self._axes[name], sizes, None) for name, spec in self._specs.items()}
