"""States before the first token, for a run without states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from moec.common.dtypes import dtype_of
from moec.common.errors import InputError
from moec.runtime.interface import Interface
from moec.runtime.roles import first_shape, room_of


class FirstStates:
    """Initial states of one model: zeros, and of length 0 where they grow."""

    def __init__(self, interface: Interface) -> None:
        named, results = ({spec.name: spec for spec in specs} for specs in (interface.inputs, interface.outputs))
        self._axes = {state.input: state.axis for state in interface.states}
        self._specs = {name: named[name] for name in self._axes}
        self.others = [spec for spec in interface.inputs if spec.name not in self._axes]
        """Inputs that are not states."""
        # Only the cache itself tells the size of a cache with room.
        rooms = (room_of(state.axis, named[state.input], results[state.output]) for state in interface.states)
        self._have_room = any(isinstance(room, str) for room in rooms)

    def beside(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Add all states to the inputs of a run, unless ``values`` has some of them or does not determine their
        sizes."""
        if not self._axes or not isinstance(values, Mapping) or self._axes.keys() & values.keys():
            return values
        sizes: dict[str, int] = {}
        for spec in self.others:
            own_shape = getattr(values.get(spec.name), "shape", ())
            sizes |= {
                size: int(length) for size, length in zip(spec.shape, own_shape, strict=False) if isinstance(size, str)
            }
        try:
            shapes = self.shapes(sizes)
        except InputError:
            return values  # which will be refused as they are
        return {
            **values,
            **{name: np.zeros(shape, dtype_of(self._specs[name].dtype)) for name, shape in shapes.items()},
        }

    def shapes(self, sizes: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
        """Determine the states' shapes, by name, from named sizes of the other inputs: numbers, or PyTorch's symbols.
        Raises InputError where these are not enough."""
        if self._have_room:
            raise InputError("states with room have a size that nothing but the states tells; give them as inputs")
        return {name: first_shape(spec, self._axes[name], sizes, None) for name, spec in self._specs.items()}
