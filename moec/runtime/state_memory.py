"""The memory of states between runs, in pages."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from moec.common.dtypes import dtype_of
from moec.common.errors import InputError, MoecError
from moec.common.specs import HeldState
from moec.runtime.device import Device, Host
from moec.runtime.held import PAGE, Pages
from moec.runtime.run_memory import LEAST_TOKENS
from moec.runtime.saved_session import checked_state

_FIRST_PAGES = 16


class StateMemory:
    """Pages of states between runs, by the names of their inputs, on the ``device``. The system provides the host's
    memory when it is first written to.

    ``shapes``: of each state while it is empty; states that are written at places begin with zeros. ``tokens``: bound
    of the tokens to write; with None the contents move to twice the memory whenever it is full.

    Of a state with a window, whole pages before the window are released when its memory is full: the pages after them
    move to their places. Memory that one long run needed is given back by the next shorter one.
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
        self.released = dict.fromkeys(self._states, 0)
        """Number of first entries of each state that do not lie in its pages."""
        self._reserved = dict(self.lengths)
        self._placed: tuple[list[int], dict[str, Any]] = [], {}  # the last run's: numbers of pages, and tensors
        room = -(-tokens // PAGE) if tokens is not None else _FIRST_PAGES
        usual = {name: self._usual_pages(name, LEAST_TOKENS) for name, state in self._states.items() if state.window}
        counts = {
            name: max(min(room, usual.get(name, room)), -(-length // PAGE)) for name, length in self.lengths.items()
        }
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
        self._release(growths)
        needed = {name: self._needed_pages(name, growth) for name, growth in growths.items()}
        counts = [*needed.values()]
        if counts != self._placed[0]:
            self._placed = [], {}  # if memory suffices only for some states, their pages have moved
            pages = {name: self._device.place(self._pages_for(name, count)) for name, count in needed.items()}
            for name, count in needed.items():
                if count > pages[name].shape[0]:
                    raise InputError(f"state {name!r}: a state outgrows its memory; expected room for all of it")
            self._placed = counts, pages
        return self._placed[1]

    def reserve(self, tokens: int) -> None:
        """Make room for so many tokens, so that runs on them do not move the pages. Raises as :meth:`pages`."""
        growths = {name: 0 if state.has_room else tokens for name, state in self._states.items()}
        self.pages(growths)
        self._reserved = {name: self.lengths[name] + growth for name, growth in growths.items()}

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
        self._reserved = dict(self.lengths)
        if not length:
            self.released = dict.fromkeys(self._states, 0)

    def saved(self) -> dict[str, np.ndarray]:
        """Copy the pages in use, on the host, with zeros where nothing was written. Of a state with a window they are
        those that the next token sees."""
        return {name: self._saved(name) for name in self._states}

    def _saved(self, name: str) -> np.ndarray:
        state, length = self._states[name], self.lengths[name]
        used, row = self._used_pages(name), self._shapes[name][-1]
        unseen = (self._before_window(name, length) - self.released[name]) // PAGE
        pages, unused = np.array(self._first(self._pages[name], used))[max(0, unseen) :], length % PAGE
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
        released = {name: self._before_window(name, length) for name in self._states}
        for name, state in self._states.items():
            entries = self.lengths[name] if state.has_room else length
            used = -(-(entries - released[name]) // PAGE)
            shape = (used, *state.stored(self._shape(name, PAGE)))
            pages = checked_state(name, saved.get(name), shape, dtype_of(state.dtype))
            self._device.assign(self._pages_for(name, used), pages)
        self._placed = [], {}
        self.truncate(length)
        self.released = released

    @property
    def shortest(self) -> int:
        """Least number of entries above 0 to which it can be truncated, since the next run reads those of a window."""
        windows = [(self.released[name], state.window) for name, state in self._states.items()]
        return max((released + window - 1 for released, window in windows if released), default=0)

    @property
    def bytes_in_use(self) -> int:
        """Bytes of the pages that hold entries or that the last run was given."""
        page_counts = dict(zip(self._placed[1], self._placed[0], strict=True))
        counts = {name: max(self._used_pages(name), page_counts.get(name, 0)) for name in self._states}
        arrays = [(self._pages[name], count) for name, count in counts.items()]
        return sum(count * math.prod(array.shape[1:]) * array.dtype.itemsize for array, count in arrays)

    def copy(self) -> StateMemory:
        with self._device.working([]):
            return self._copy()

    def _copy(self) -> StateMemory:
        other = object.__new__(StateMemory)
        other._device, other._placed = self._device, ([], {})
        other._states, other._shapes = self._states, self._shapes
        other.lengths, other.released, other._reserved = dict(self.lengths), dict(self.released), dict(self.lengths)
        other._pages = {name: self._copied(name, pages.shape[0]) for name, pages in self._pages.items()}
        return other

    def _used_pages(self, name: str, growth: int = 0) -> int:
        return -(-(self.lengths[name] - self.released[name] + growth) // PAGE)

    def _needed_pages(self, name: str, growth: int) -> int:
        """Number of pages for a run. Of a state with a window it is the same for all long states, as a captured run
        needs, and so large that it divides no window among fewer blocks of threads than all pages would."""
        window, whole = self._states[name].window, -(-(self.lengths[name] + growth) // PAGE)
        if not window:
            return whole
        return max(self._used_pages(name, growth), min(whole, -(-(window + growth) // PAGE) + 1))

    def _usual_pages(self, name: str, growth: int) -> int:
        """Number of pages for a window, runs of ``growth`` and parts of a prompt that a processor runs."""
        return -(-(self._states[name].window + max(growth, LEAST_TOKENS)) // PAGE) + 1

    def _release(self, growths: Mapping[str, int]) -> None:
        """Release the pages before the windows of a run if there is no room for it, or memory for several of its size.
        States with equal windows release the same, since the program is told one number for them."""
        names = [name for name, state in self._states.items() if state.window]
        if all(self.lengths[name] + growths[name] <= self._reserved[name] for name in names):
            return
        there = {name: self._pages[name].shape[0] for name in names}
        usual = {name: self._usual_pages(name, growths[name]) for name in names}
        wide = [name for name in names if there[name] > 2 * usual[name]]
        if wide or any(self._used_pages(name, growths[name]) > there[name] for name in names):
            for name in names:
                self._move(name)
        for name in wide:
            self._placed = [], {}
            self._pages[name] = self._copied(name, usual[name])

    def _before_window(self, name: str, length: int) -> int:
        """Number of entries, in whole pages, of a state of this length that the next token does not see."""
        window = self._states[name].window
        return max(0, length + 1 - window) // PAGE * PAGE if window else 0

    def _move(self, name: str) -> None:
        """Move the pages from the first one on that the next token sees to the begin."""
        pages, used = self._pages[name], self._used_pages(name)
        number = (self._before_window(name, self.lengths[name]) - self.released[name]) // PAGE
        if number <= 0:
            return
        for start in range(0, used - number, number):  # parts that do not overlap
            shape = (min(number, used - number - start), *pages.shape[1:])
            source, target = (
                self._device.part(pages, at * math.prod(shape[1:]), shape) for at in (start + number, start)
            )
            self._device.assign(target, source)
        self.released[name] += number * PAGE

    def _pages_for(self, name: str, needed: int) -> Pages:
        there = self._pages[name].shape[0]
        if needed > there:
            self._pages[name] = self._copied(name, needed if self._states[name].window else max(needed, 2 * there))
        return self._first(self._pages[name], needed)

    def _copied(self, name: str, count: int) -> Pages:
        """Make ``count`` new pages and copy those in use into them."""
        used, pages = self._used_pages(name), self._new_pages(name, count)
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
