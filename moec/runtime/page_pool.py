"""Pages of the states of a batch: memory that sequences share, with a count of the sequences that hold each page.

A page holds the entries of :data:`~moec.runtime.held.PAGE` tokens of every state. The system provides its memory when
it is first written to.

Blocks of :data:`BLOCK` tokens have names. A page with a named block keeps its entries when no sequence holds it any
more, and can be found by that name until it is taken for other tokens. Pages without names are taken first, the one
released last before the others, so that few pages are written to; after them the named page that was released first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from moec.common.dtypes import dtype_of
from moec.common.errors import InputError, MoecError
from moec.common.specs import HeldState, TensorSpec
from moec.runtime.device import Device
from moec.runtime.held import PAGE
from moec.runtime.on_device import OnDevice

BLOCK = 16
"""Tokens of a block. A page has a whole number of them."""


class PagePool:
    """Pages [count, ..., PAGE, ...] of each state, by the name of its input. Page i of all states goes together."""

    def __init__(self, states: Sequence[HeldState], inputs: Sequence[TensorSpec], count: int, device: Device) -> None:
        """``device``: where the pages are. Raises MoecError where there is no memory for ``count`` of them."""
        specs = {spec.name: spec for spec in inputs}
        self.count = count
        self._states, self._device = states, device
        self.arrays: dict[str, np.ndarray | OnDevice] = {}
        for state in states:
            shape = [PAGE if axis == state.axis else int(size) for axis, size in enumerate(specs[state.input].shape)]
            stored = (count, *state.stored(shape))
            try:
                with device.working([]):
                    self.arrays[state.input] = device.new(stored, dtype_of(state.dtype))
            except (MemoryError, ValueError) as error:
                raise MoecError(
                    f"there is no memory for {count * PAGE} tokens of state {state.input!r} ({state.dtype}"
                    f"{list(stored)}); make a batch for fewer tokens (max_tokens)"
                ) from error
        self._holders = np.zeros(count, np.int64)
        self._blank = [*range(count - 1, -1, -1)]  # without names
        self._kept: dict[int, None] = {}  # with names, the one first that has not been held for longest
        self._pages: dict[bytes, int] = {}
        self._names: dict[int, dict[int, bytes]] = {}  # of each page, by the number of the block in it

    @property
    def free(self) -> int:
        """Number of pages that no sequence holds."""
        return len(self._blank) + len(self._kept)

    @property
    def page_bytes(self) -> int:
        """Bytes of one page, of all states together."""
        return sum(math.prod(array.shape[1:]) * array.dtype.itemsize for array in self.arrays.values())

    def take(self) -> int:
        """Take a free page. Raises InputError where there is none."""
        if not self.free:
            raise InputError(
                f"the batch is full: all of its {self.count} pages of {PAGE} tokens are in use; remove or truncate a "
                "sequence, or make a batch for more tokens (max_tokens)"
            )
        page = self._blank.pop() if self._blank else next(iter(self._kept))
        self._forget(page)
        self.hold(page)
        return page

    def hold(self, page: int) -> None:
        """Add a sequence to the holders of a page."""
        self._kept.pop(page, None)
        self._holders[page] += 1

    def release(self, page: int) -> None:
        """Remove a sequence from the holders of a page."""
        self._holders[page] -= 1
        if self._holders[page]:
            return
        if page in self._names:
            self._kept[page] = None
        else:
            self._blank.append(page)

    def name(self, page: int, block: int, name: bytes) -> None:
        """Name a block of a page, so that :meth:`find` finds the page. The name identifies all tokens up to the end of
        the block."""
        if name not in self._pages:
            self._pages[name] = page
            self._names.setdefault(page, {})[block] = name

    def has(self, name: bytes) -> bool:
        """Whether a page has a block with a name."""
        return name in self._pages

    def find(self, name: bytes) -> int:
        """Return the page of a name."""
        return self._pages[name]

    def writable(self, page: int, token: int) -> int:
        """Return a page with the same entries that one sequence may write to, from ``token`` of the page on: the page
        itself, whose blocks from there on lose their names, or a copy if others hold the page, too. Raises InputError
        if no page is free for the copy."""
        if self._holders[page] == 1:
            self._forget(page, token // BLOCK)
            return page
        copy = self.take()
        with self._device.working([]):
            for array in self.arrays.values():
                shape = array.shape[1:]
                target, source = (self._device.part(array, at * math.prod(shape), shape) for at in (copy, page))
                self._device.assign(target, source)
        self.release(page)
        return copy

    def _forget(self, page: int, first: int = 0) -> None:
        """Remove the names of a page from the block ``first`` on."""
        names = self._names.pop(page, {})
        for block in [block for block in names if block >= first]:
            del self._pages[names.pop(block)]
        if names:
            self._names[page] = names
