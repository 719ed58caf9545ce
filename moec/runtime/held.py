"""The memory of states that a program holds in place. Their layout: :mod:`moec.targets.tvm.lowering.held_states`."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from moec.common.dtypes import dtype_of
from moec.common.errors import InputError, MoecError
from moec.common.guards import Expression, computed_sizes, parse_size, size_names, solve
from moec.common.specs import HeldState, TensorSpec
from moec.runtime.device import Device, Host
from moec.runtime.library import load_ffi
from moec.runtime.on_device import OnDevice
from moec.runtime.saved_session import checked_state
from moec.runtime.tensors import view

PAGE = 256
"""Length of the growing axis in a page, where there are several pages: kernels read blocks of at most that length."""
_FIRST_PAGES = 16

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
        self.length_places = [(self._size_indices[at], axis) for at, axis in self._lengths]
        """Inputs, by position, and axes with the lengths that the program takes."""

    def stand_ins(self, memory: StateMemory) -> dict[str, np.ndarray]:
        """Make placeholder arrays for the states among :attr:`size_inputs`, with their current shapes and types. They
        take no memory and their elements have no meaning."""
        shapes = [(name, memory.shape(name), element) for name, element in self._nothing.items()]
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

    def in_place(self, arrays: Sequence[Any], pages: Mapping[str, Any]) -> list[Any]:
        """Do the same for the arrays of :attr:`size_inputs` and ``pages``, the runtime's tensors by the names of the
        states."""
        by_name = {spec.name: array for spec, array in zip(self.size_inputs, arrays, strict=True)}
        return [*(pages.get(name, by_name.get(name)) for name in self._names), *self._lengths_of(arrays)]

    def longest(self, arrays: Sequence[Any], pages: Mapping[str, Any]) -> list[Any]:
        """Do the same as :meth:`in_place`, with the shapes of the longest states for which the pages have room.

        Inputs whose shape follows from a length end in zeros; the lengths in memory are the actual ones. So all runs on
        the same pages have equal shapes."""
        lengths, growths = self._lengths_of(arrays), self.growths(arrays)
        longest = {}
        for at, axis in self._lengths:
            spec, array = self.size_inputs[at], arrays[at]
            growth = growths[spec.name]
            room = pages[spec.name].shape[0] * PAGE - growth if growth else array.shape[axis]
            longest[spec.shape[axis]] = room
        sizes = self._sizes(arrays) | longest
        padded = [
            array if spec.name in pages else _padded(array, spec, longest, sizes)
            for spec, array in zip(self.size_inputs, arrays, strict=True)
        ]
        inputs = self.in_place(padded, pages)[: len(self._names)]
        return [*inputs, load_ffi().Shape([*longest.values()]), *lengths[1:]]

    def _lengths_of(self, arrays: Sequence[Any]) -> list[Any]:
        lengths = [arrays[at].shape[axis] for at, axis in self._lengths]
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
        pages = new((1, *state.stored(shape)), dtype)
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


class StateMemory:
    """Pages of states between runs, by the names of their inputs, on the ``device``. The system provides the host's
    memory when it is first written to.

    ``shapes``: of each state while it is empty; states that are written at places begin with zeros. ``tokens``: bound
    of the tokens to write; with None the contents move to twice the memory whenever it is full.
    """

    def __init__(
        self,
        states: Sequence[HeldState],
        shapes: Mapping[str, Sequence[int]],
        tokens: int | None,
        device: Device | None = None,
    ) -> None:
        self._device = device or Host()
        self._states = {state.input: state for state in states}
        self._shapes = {name: tuple(shape) for name, shape in shapes.items()}
        self.lengths = {
            name: self._shapes[name][state.axis] if state.has_room else 0 for name, state in self._states.items()
        }
        self._placed: tuple[list[int], dict[str, Any]] = [], {}  # the last run's: numbers of pages, and tensors
        room = -(-tokens // PAGE) if tokens is not None else _FIRST_PAGES
        counts = {name: max(room, -(-length // PAGE)) for name, length in self.lengths.items()}
        self._pages = {name: self._new_pages(name, count) for name, count in counts.items()}

    def __contains__(self, name: str) -> bool:
        return name in self._states

    def shape(self, name: str) -> tuple[int, ...]:
        """Current shape of a state."""
        return self._shape(name, self.lengths[name])

    def pages(self, growths: Mapping[str, int]) -> dict[str, Any]:
        """Return enough pages of each state for its contents and the new entries, as the runtime's tensors. Runs on
        equal numbers of pages get the same tensors. Raises MoecError where memory is insufficient, and InputError
        for pages that have no room, since kernels that read lengths in a device's memory cannot raise."""
        lengths = {name: self.lengths[name] + growth for name, growth in growths.items()}
        counts = [-(-length // PAGE) for length in lengths.values()]
        if counts != self._placed[0]:
            self._placed = [], {}  # if memory suffices only for some states, their pages have moved
            pages = {name: self._device.place(self._pages_for(name, length)) for name, length in lengths.items()}
            for name, length in lengths.items():
                if length > pages[name].shape[0] * PAGE:
                    raise InputError(f"state {name!r}: a state outgrows its memory; expected room for all of it")
            self._placed = counts, pages
        return self._placed[1]

    def reserve(self, tokens: int) -> None:
        """Make room for so many tokens, so that runs on them do not move the pages. Raises as :meth:`pages`."""
        self.pages({name: 0 if state.has_room else tokens for name, state in self._states.items()})

    @contextlib.contextmanager
    def growing(self, growths: Mapping[str, int]) -> Iterator[None]:
        """Context of a run that appends entries. Unless it fails they count from its begin, so that a run in turn with
        it continues behind them."""
        self._grow(growths, 1)
        try:
            yield
        except BaseException:
            self._grow(growths, -1)
            raise

    def _grow(self, growths: Mapping[str, int], sign: int) -> None:
        self.lengths = {name: length + sign * growths.get(name, 0) for name, length in self.lengths.items()}

    def truncate(self, length: int) -> None:
        """Forget entries from ``length`` on."""
        growing = [name for name, state in self._states.items() if not state.has_room]
        self.lengths |= dict.fromkeys(growing, length)

    def saved(self) -> dict[str, np.ndarray]:
        """Copy the pages in use, on the host, with zeros where nothing was written."""
        return {name: self._saved(name) for name in self._states}

    def _saved(self, name: str) -> np.ndarray:
        state, length = self._states[name], self.lengths[name]
        used, row = -(-length // PAGE), self._shapes[name][-1]
        pages, unused = np.array(self._first(self._pages[name], used)), length % PAGE
        if state.has_room or not unused:
            return pages
        if state.dtype != "int8":
            pages[(-1, *[slice(None)] * state.axis, slice(unused, None))] = 0
            return pages
        for part in (pages[-1, ..., : PAGE * row], pages[-1, ..., PAGE * row :]):  # numbers, and their scales
            part.reshape(*part.shape[:-1], PAGE, -1)[..., unused:, :] = 0
        return pages

    def load(self, saved: Mapping[str, np.ndarray], length: int) -> None:
        """Take the pages that :meth:`saved` copied at ``length`` entries. Raises InputError, naming the state, where
        they have another type or shape."""
        for name, state in self._states.items():
            used = -(-(self.lengths[name] if state.has_room else length) // PAGE)
            shape = (used, *state.stored(self._shape(name, PAGE)))
            pages = checked_state(name, saved.get(name), shape, dtype_of(state.dtype))
            self._device.assign(self._pages_for(name, used * PAGE), pages)
        self._placed = [], {}
        self.truncate(length)

    @property
    def bytes_in_use(self) -> int:
        """Bytes of the pages that hold entries or that the last run was given."""
        page_counts = dict(zip(self._placed[1], self._placed[0], strict=True))
        counts = {name: max(-(-length // PAGE), page_counts.get(name, 0)) for name, length in self.lengths.items()}
        arrays = [(self._pages[name], count) for name, count in counts.items()]
        return sum(count * math.prod(array.shape[1:]) * array.dtype.itemsize for array, count in arrays)

    def copy(self) -> StateMemory:
        with self._device.working([]):
            return self._copy()

    def _copy(self) -> StateMemory:
        other = object.__new__(StateMemory)
        other._device, other._placed = self._device, ([], {})
        other._states, other._shapes, other.lengths = self._states, self._shapes, dict(self.lengths)
        other._pages = {name: self._copied(name, pages.shape[0]) for name, pages in self._pages.items()}
        return other

    def _pages_for(self, name: str, length: int) -> Pages:
        needed, there = -(-length // PAGE), self._pages[name].shape[0]
        if needed > there:
            self._pages[name] = self._copied(name, max(needed, 2 * there))
        return self._first(self._pages[name], needed)

    def _copied(self, name: str, count: int) -> Pages:
        """Make ``count`` new pages and copy those in use into them."""
        used, pages = -(-self.lengths[name] // PAGE), self._new_pages(name, count)
        self._device.assign(self._first(pages, used), self._first(self._pages[name], used))
        return pages

    def _first(self, pages: Pages, count: int) -> Pages:
        return self._device.part(pages, 0, (count, *pages.shape[1:]))

    def _new_pages(self, name: str, count: int) -> Pages:
        state = self._states[name]
        shape, dtype = (count, *state.stored(self._shape(name, PAGE))), dtype_of(state.dtype)
        try:
            return self._device.new(shape, dtype, zeros=state.at_places)
        except (MemoryError, ValueError) as error:  # ValueError: more than any machine has
            raise MoecError(
                f"there is no memory for {count * PAGE} tokens of state {name!r} ({dtype}{list(shape)}); "
                "make a session for fewer tokens (max_tokens)"
            ) from error

    def _shape(self, name: str, length: int) -> tuple[int, ...]:
        shape, axis = self._shapes[name], self._states[name].axis
        return (*shape[:axis], length, *shape[axis + 1 :])
