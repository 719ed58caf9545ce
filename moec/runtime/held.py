"""The memory of states that a program holds in place; how it lies: :mod:`moec.targets.tvm.held_states`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moec.common.dtypes import dtype_of
from moec.common.guards import Expression, computed_sizes, parse_size, solve
from moec.common.specs import HeldState, TensorSpec
from moec.runtime.library import load_ffi

PAGE = 256
"""Numbers of the growing axis in a page, where there is more than one page: kernels read blocks of at most so many."""


class HeldStates:
    """Those of one program. ``arrays`` are always its inputs as a caller gives them, states included, of which alone
    the shape counts where the pages are given, too."""

    def __init__(
        self, states: Sequence[HeldState], inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> None:
        names, results = [spec.name for spec in inputs], [spec.name for spec in outputs]
        self.states = tuple(states)
        self.inputs = [names.index(state.input) for state in states]
        self.outputs = [results.index(state.output) for state in states]
        self._specs = tuple(inputs)
        self._growth: list[Expression[int]] = [parse_size(state.growth) for state in states]
        self._computed = computed_sizes(spec.shape for spec in inputs)
        lengths = {
            inputs[at].shape[state.axis]: (at, state.axis) for at, state in zip(self.inputs, states, strict=True)
        }
        self._lengths = list(lengths.values())

    def lengths(self, arrays: Sequence[Any]) -> Any:
        """How much of the states is in use, each name of a size once, as the program takes it."""
        return load_ffi().Shape([arrays[at].shape[axis] for at, axis in self._lengths])

    def with_pages(self, arrays: Sequence[Any], pages: Mapping[str, np.ndarray] | None) -> list[Any]:
        """The arrays with pages in place of states: those that are given, or new ones of one page that is just large
        enough and begins with the state."""
        given = list(arrays)
        sizes = {} if pages is not None else self._sizes(arrays)
        for state, at, growth in zip(self.states, self.inputs, self._growth, strict=True):
            given[at] = pages[state.input] if pages is not None else _one_page(arrays[at], state, growth(sizes))
        return given

    def results(self, results: Sequence[np.ndarray], specs: Sequence[TensorSpec]) -> dict[int, np.ndarray]:
        """The states among a program's results, by position, out of new pages as :meth:`with_pages` makes them."""
        return {at: results[at][0].astype(dtype_of(specs[at].dtype), copy=False) for at in self.outputs}

    def _sizes(self, arrays: Sequence[Any]) -> dict[Any, int]:
        shapes = [(spec.shape, array.shape) for spec, array in zip(self._specs, arrays, strict=True)]
        sizes: dict[Any, int] = {
            size: found for shape, sizes in shapes for size, found in zip(shape, sizes, strict=True)
        }
        for size in self._computed:
            solve(size, sizes)
        return sizes


def _one_page(past: np.ndarray, state: HeldState, growth: int) -> np.ndarray:
    shape, length = list(past.shape), past.shape[state.axis]
    shape[state.axis] += growth
    pages = np.empty((1, *shape), dtype_of(state.dtype))
    pages[(0, *[slice(None)] * state.axis, slice(length))] = past
    return pages
