"""Pages of the states of a batch: memory that sequences share, counted by how many hold each page.

A page holds the entries of :data:`~moec.runtime.held.PAGE` tokens of every state. The system provides its memory when
it is first written to. So that little memory is written to, the page that was released last is taken first; but where
released pages may be found again, as those before a window, the one that was released first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from moec.common.dtypes import dtype_of
from moec.common.errors import InputError, MoecError
from moec.common.specs import HeldState, TensorSpec
from moec.runtime.held import PAGE


class PagePool:
    """Pages [count, ..., PAGE, ...] of each state, by the name of its input. Page i of all states goes together.
    ``finds_released``: whether a released page is found by its name until it is taken again."""

    def __init__(
        self, states: Sequence[HeldState], inputs: Sequence[TensorSpec], count: int, *, finds_released: bool = False
    ) -> None:
        """Raises MoecError where there is no memory for ``count`` pages."""
        specs = {spec.name: spec for spec in inputs}
        self.count = count
        self._states = states
        self.arrays: dict[str, np.ndarray] = {}
        for state in states:
            shape = [PAGE if axis == state.axis else int(size) for axis, size in enumerate(specs[state.input].shape)]
            stored = (count, *state.stored(shape))
            try:
                self.arrays[state.input] = np.empty(stored, dtype_of(state.dtype))
            except (MemoryError, ValueError) as error:
                raise MoecError(
                    f"there is no memory for {count * PAGE} tokens of state {state.input!r} ({state.dtype}"
                    f"{list(stored)}); make a batch for fewer tokens (max_tokens)"
                ) from error
        self._holders = np.zeros(count, np.int64)
        self._finds_released = finds_released
        self._free = dict.fromkeys(range(count) if finds_released else range(count - 1, -1, -1))
        self._named: dict[bytes, int] = {}
        self._names: dict[int, bytes] = {}

    @property
    def free(self) -> int:
        """Number of pages that no sequence holds."""
        return len(self._free)

    @property
    def page_bytes(self) -> int:
        """Bytes of one page, of all states together."""
        return sum(math.prod(array.shape[1:]) * array.dtype.itemsize for array in self.arrays.values())

    def take(self) -> int:
        """Take a free page. Raises InputError where there is none."""
        if not self._free:
            raise InputError(
                f"the batch is full: all of its {self.count} pages of {PAGE} tokens are in use; remove or truncate a "
                "sequence, or make a batch for more tokens (max_tokens)"
            )
        page = next(iter(self._free) if self._finds_released else reversed(self._free))
        self._forget(page)
        self.hold(page)
        return page

    def hold(self, page: int) -> None:
        """Let one more sequence hold a page."""
        self._free.pop(page, None)
        self._holders[page] += 1

    def release(self, page: int) -> None:
        """Let one sequence less hold a page."""
        self._holders[page] -= 1
        if not self._holders[page]:
            self._free[page] = None
            if not self._finds_released:
                self._forget(page)

    def name(self, page: int, name: bytes) -> None:
        """Let a page be found by a name that says all that its entries follow from."""
        if name not in self._named:
            self._named[name], self._names[page] = page, name

    def has(self, name: bytes) -> bool:
        """Whether there is a page of that name that a sequence holds, or that was released and is found."""
        return name in self._named

    def find(self, name: bytes) -> int:
        """Return the page of a name."""
        return self._named[name]

    def _forget(self, page: int) -> None:
        self._named.pop(self._names.pop(page, b""), None)

    def writable(self, page: int) -> int:
        """Return a page with the same entries that one sequence alone holds and that no name finds: a copy in the place
        of a shared page. Raises InputError where there is no free page for it."""
        if self._holders[page] == 1:
            self._forget(page)
            return page
        copy = self.take()
        for array in self.arrays.values():
            array[copy] = array[page]
        self.release(page)
        return copy
