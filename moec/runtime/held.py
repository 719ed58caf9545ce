"""States that a program holds in place: what a run takes in place of them. Their layout:
:mod:`moec.targets.tvm.lowering.held_states`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from moec.common.dtypes import dtype_of
from moec.common.guards import Expression, computed_sizes, parse_size, size_names, solve
from moec.common.specs import HeldState, TensorSpec
from moec.runtime.device import Device
from moec.runtime.library import load_ffi
from moec.runtime.on_device import OnDevice
from moec.runtime.tensors import view

PAGE = 256
"""Length of the growing axis in a page, where there are several pages: kernels read blocks of at most that length."""

Pages = np.ndarray | OnDevice
Convert = Callable[[str, Sequence[Any]], None]
"""Callback that runs a kernel of the program by name, on numbers and the runtime's tensors."""


class HeldStates:
    """Held states of one program. States with equal shapes and growth have the same length, so one of them represents
    all where sizes are read. ``size_inputs``: the inputs that determine all sizes, which include all other inputs.
    ``lengths_in_memory``: whether the program takes the lengths in use as tensors int64[1] as well."""

    def __init__(
        self,
        states: Sequence[HeldState],
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        *,
        lengths_in_memory: bool = False,
    ) -> None:
        self._lengths_in_memory = lengths_in_memory
        self._names, results = [spec.name for spec in inputs], [spec.name for spec in outputs]
        self.states = tuple(states)
        self.inputs = [self._names.index(state.input) for state in states]
        self.outputs = [results.index(state.output) for state in states]
        self.other_inputs = [at for at in range(len(inputs)) if at not in self.inputs]
        self.other_outputs = [at for at in range(len(outputs)) if at not in self.outputs]
        places = list(zip(self.inputs, states, strict=True))
        alike = {(inputs[at].shape, inputs[at].dtype, state.axis, state.growth): at for at, state in reversed(places)}
        first = set(alike.values())
        self._size_indices = [at for at in range(len(inputs)) if at not in self.inputs or at in first]
        self.size_inputs = [inputs[at] for at in self._size_indices]
        self._nothing = {inputs[at].name: np.zeros(1, dtype_of(inputs[at].dtype)) for at in sorted(first)}
        self._growth: dict[str, Expression[int]] = {state.growth: parse_size(state.growth) for state in states}
        self._computed = computed_sizes(spec.shape for spec in inputs)
        growing = [(self._size_indices.index(at), inputs[at], state.axis) for at, state in places if at in first]
        lengths = {spec.shape[axis]: (at, axis) for at, spec, axis in growing}
        self._lengths = list(lengths.values())
        first_of = {(inputs[at].shape[state.axis], state.window): state.input for at, state in reversed(places)}
        with_window = [(size, name) for (size, window), name in reversed(first_of.items()) if window]
        self._in_windows = [(name, *lengths[size]) for size, name in with_window]
        length_axes = [*self._lengths, *(place for _, *place in self._in_windows)]
        self.length_places = [(self._size_indices[at], axis) for at, axis in length_axes]
        """Inputs, by position, and axes with the lengths that the program takes: of states, and then of those with
        windows, of which the program is told how many entries lie in pages."""

    def stand_ins(self, shape_of: Callable[[str], tuple[int, ...]]) -> dict[str, np.ndarray]:
        """Make placeholder arrays for the states among :attr:`size_inputs`, with their current shapes and types. They
        take no memory and their elements have no meaning."""
        shapes = [(name, shape_of(name), element) for name, element in self._nothing.items()]
        return {
            name: np.ndarray(shape, element.dtype, element, 0, (0,) * len(shape)) for name, shape, element in shapes
        }

    def with_pages(self, arrays: Sequence[Any], device: Device, convert: Convert) -> list[Any]:
        """Replace states among the arrays of all inputs by new pages on the ``device``, where the state is there.

        Each state gets one page, just large enough, that begins with its contents. The used lengths of the states
        follow, one for each name of a size, as the program takes them.
        """
        extended, reduced = list(arrays), [arrays[at] for at in self._size_indices]
        growths = self.growths(reduced)
        for state, at in zip(self.states, self.inputs, strict=True):
            extended[at] = _one_page(arrays[at], state, growths[state.input], device, convert)
        return [*extended, *self._lengths_of(reduced)]

    def in_place(self, arrays: Sequence[Any], pages: Mapping[str, Any], released: Mapping[str, int]) -> list[Any]:
        """Do the same for the arrays of :attr:`size_inputs` and ``pages``, the runtime's tensors by the names of the
        states. ``released``: number of first entries of each state that do not lie in its pages."""
        by_name = {spec.name: array for spec, array in zip(self.size_inputs, arrays, strict=True)}
        return [*(pages.get(name, by_name.get(name)) for name in self._names), *self._lengths_of(arrays, released)]

    def longest(self, arrays: Sequence[Any], pages: Mapping[str, Any], released: Mapping[str, int]) -> list[Any]:
        """Do the same as :meth:`in_place`, with the shapes of the longest states for which the pages have room.

        Inputs whose shape follows from a length end in zeros; the lengths in memory are the actual ones. So all runs on
        the same pages have equal shapes."""
        lengths, growths = self._lengths_of(arrays, released), self.growths(arrays)
        longest = {}
        for at, axis in self._lengths:
            spec, length = self.size_inputs[at], arrays[at].shape[axis]
            growth = growths[spec.name]
            longest[spec.shape[axis]] = -(-(length + growth) // PAGE) * PAGE - growth if growth else length
        rooms = [pages[name].shape[0] * PAGE - growths[name] for name, _, _ in self._in_windows]
        sizes = self._sizes(arrays) | longest
        padded = [
            array if spec.name in pages else _padded(array, spec, longest, sizes)
            for spec, array in zip(self.size_inputs, arrays, strict=True)
        ]
        inputs = self.in_place(padded, pages, released)[: len(self._names)]
        return [*inputs, load_ffi().Shape([*longest.values(), *rooms]), *lengths[1:]]

    def _lengths_of(self, arrays: Sequence[Any], released: Mapping[str, int] = MappingProxyType({})) -> list[Any]:
        lengths = [arrays[at].shape[axis] for at, axis in self._lengths]
        lengths += [arrays[at].shape[axis] - released.get(name, 0) for name, at, axis in self._in_windows]
        tensors = [np.array([length], np.int64) for length in lengths] if self._lengths_in_memory else []
        return [load_ffi().Shape(lengths), *tensors]

    def growths(self, arrays: Sequence[Any]) -> dict[str, int]:
        """Compute by how much a run grows each state. ``arrays``: the arrays of :attr:`size_inputs`."""
        sizes = self._sizes(arrays)
        growth = {text: expression(sizes) for text, expression in self._growth.items()}
        return {state.input: growth[state.growth] for state in self.states}

    def _sizes(self, arrays: Sequence[Any]) -> dict[Any, int]:
        """Collect the named sizes of the arrays of :attr:`size_inputs`."""
        shapes = [(spec.shape, array.shape) for spec, array in zip(self.size_inputs, arrays, strict=True)]
        sizes: dict[Any, int] = {size: value for spec, shape in shapes for size, value in zip(spec, shape, strict=True)}
        for size in self._computed:
            solve(size, sizes)
        return sizes

    def results(
        self, results: Mapping[int, Any], specs: Sequence[TensorSpec], device: Device, convert: Convert
    ) -> dict[int, Any]:
        """Copy the states among a program's results, by position, out of the pages that :meth:`with_pages` made."""
        places = zip(self.states, self.outputs, strict=True)
        return {at: _without_page(results[at], state, specs[at], device, convert) for state, at in places}


def _padded(array: Any, spec: TensorSpec, longest: Mapping[Any, int], sizes: Mapping[Any, int]) -> Any:
    """Append zeros along the axes whose sizes follow from one of the ``longest`` lengths."""
    after = [
        size if isinstance(size, int) or not longest.keys() & set(size_names(size)) else parse_size(size)(sizes)
        for size in spec.shape
    ]
    shape = [actual if isinstance(size, str) else size for size, actual in zip(after, array.shape, strict=True)]
    if tuple(shape) == tuple(array.shape):
        return array
    padded = np.zeros(shape, array.dtype)
    padded[tuple(slice(actual) for actual in array.shape)] = array
    return padded


def _one_page(past: Any, state: HeldState, growth: int, device: Device, convert: Convert) -> Pages:
    dtype, shape, length = dtype_of(state.dtype), list(past.shape), past.shape[state.axis]
    shape[state.axis] += growth
    new = np.zeros if state.at_places else np.empty
    if state.store:
        pages = device.new((1, *state.stored(shape)), dtype, zeros=state.at_places)
        convert(state.store, [0, device.place(past), device.place(pages)])
        return pages
    if isinstance(past, OnDevice) and past.dtype != dtype:
        past = device.fetch(past.tensor)
    if isinstance(past, OnDevice):
        return _one_page_there(past, state, shape, device)
    pages = new((1, *shape), dtype)
    pages[(0, *[slice(None)] * state.axis, slice(length))] = past
    return pages


def _one_page_there(past: OnDevice, state: HeldState, shape: Sequence[int], device: Device) -> Pages:
    """Make the page on the device, which copies contiguous rows."""
    axis, pages = state.axis, device.new((1, *shape), past.dtype, zeros=state.at_places)
    width = math.prod(shape[axis + 1 :])
    row, filled = shape[axis] * width, past.shape[axis] * width
    for number in range(math.prod(shape[:axis])):
        source = device.part(past, number * filled, (filled,))
        device.assign(device.part(pages, number * row, (filled,)), source)
    return pages


def _without_page(pages: Any, state: HeldState, spec: TensorSpec, device: Device, convert: Convert) -> Any:
    """Convert the only page to the runtime's tensor, in the state's own type where it is stored in another."""
    stored, dtype = dtype_of(str(pages.dtype)), dtype_of(spec.dtype)
    if state.restore:
        restored = device.place(np.empty(state.shape(tuple(pages.shape)[1:], spec.shape[-1]), dtype))
        convert(state.restore, [pages, restored])
        return restored
    tensor = view(pages, tuple(pages.shape)[1:], stored)
    return tensor if stored == dtype else device.place(device.fetch(tensor).astype(dtype))
