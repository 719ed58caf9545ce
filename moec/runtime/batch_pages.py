"""Pages of all states of a batch: whole states, which keep all tokens, and windows, which keep the last ones.

A page of a window is released when no token from the last part on sees it. So the tokens of that part can still be
forgotten.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from moec.common.specs import HeldState, TensorSpec
from moec.runtime.device import Device
from moec.runtime.held import PAGE
from moec.runtime.page_pool import BLOCK, PagePool

_RELEASED = -1


@dataclasses.dataclass
class SequencePages:
    """Pages of one sequence, in the order of its tokens. ``whole``: pages of states that are kept whole; ``near``:
    pages of windows, empty if the model has none. The first ``released`` pages of ``near`` are not held any more."""

    whole: list[int] = dataclasses.field(default_factory=list)
    near: list[int] = dataclasses.field(default_factory=list)
    released: int = 0

    def __len__(self) -> int:
        return len(self.whole)


class BatchPages:
    """Memory for ``count`` pages of states that are kept whole, and for the windows of ``max_sequences`` sequences and
    as many earlier prompts."""

    def __init__(
        self,
        states: Sequence[HeldState],
        inputs: Sequence[TensorSpec],
        count: int,
        max_sequences: int,
        device: Device,
    ) -> None:
        """``device``: where the memory is. Raises MoecError where there is no memory for that."""
        near = [state for state in states if state.window]
        self._window = max((state.window for state in near), default=0)
        # The page of the last part, one more that the part before may have been in, and those of the window before.
        most = 2 * max_sequences * (2 - (1 - self._window) // PAGE) if near else 0
        self._whole = PagePool([state for state in states if not state.window], inputs, count, device)
        self._near = PagePool(near, inputs, min(count, most), device)
        self.arrays = {**self._whole.arrays, **self._near.arrays}
        """Pages of each state, by the name of its input."""

    @property
    def count(self) -> int:
        """Number of pages for all tokens."""
        return self._whole.count

    @property
    def free(self) -> int:
        """Number of pages for all tokens that no sequence holds."""
        return self._whole.free

    @property
    def page_bytes(self) -> int:
        """Bytes of one page, of all states together."""
        return self._whole.page_bytes + self._near.page_bytes

    @property
    def bytes_in_use(self) -> int:
        """Bytes of the pages that sequences hold."""
        return sum((pool.count - pool.free) * pool.page_bytes for pool in (self._whole, self._near))

    def shortest(self, pages: SequencePages) -> int:
        """Least number of tokens above 0 that a sequence can be cut to: the next token sees those of its window."""
        return pages.released * PAGE + self._window - 1 if pages.released else 0

    def shared(self, pages: SequencePages) -> SequencePages:
        """Let one more sequence hold the same pages."""
        for pool, numbers in self._held(pages):
            for number in numbers:
                pool.hold(number)
        return SequencePages([*pages.whole], [*pages.near], pages.released)

    def keep(self, pages: SequencePages, count: int) -> None:
        """Release all pages of a sequence except the first ``count``. The last page is released first, so that other
        tokens take it before the pages that it depends on."""
        for pool, numbers in self._held(pages, count):
            for number in reversed(numbers):
                pool.release(number)
        del pages.whole[count:], pages.near[count:]
        pages.released = min(pages.released, count)

    def make_room(self, pages: SequencePages, start: int, end: int) -> None:
        """Give a sequence pages of its own for the tokens from ``start`` up to ``end``. Raises InputError where there
        are too few."""
        first = start // PAGE
        for pool, numbers in self._both(pages):
            if first < len(numbers):
                numbers[first] = pool.writable(numbers[first], start % PAGE)
            while len(numbers) * PAGE < end:
                numbers.append(pool.take())

    def release_before(self, pages: SequencePages, token: int) -> None:
        """Release the pages before the window of a token."""
        end = min(max(0, token + 1 - self._window) // PAGE, len(pages.near))
        for at in range(pages.released, end):
            self._near.release(pages.near[at])
            pages.near[at] = _RELEASED
        pages.released = max(pages.released, end)

    def name(self, pages: SequencePages, block: int, name: bytes) -> None:
        """Name a block of a sequence, so that :meth:`find` finds it. The name identifies all tokens up to its end."""
        page, inner = divmod(block, PAGE // BLOCK)
        for pool, numbers in self._both(pages):
            pool.name(numbers[page], inner, name)

    def known(self, names: Iterable[bytes]) -> int:
        """Count the first blocks, of successive ones with these names, that pages have."""
        return sum(1 for _ in itertools.takewhile(self._whole.has, names))

    def has(self, name: bytes) -> bool:
        """Whether a page has a block of that name."""
        return self._whole.has(name)

    def find(self, names: Sequence[bytes], can_begin: Callable[[bytes], bool]) -> tuple[SequencePages, int]:
        """Find the pages of the longest beginning of successive blocks with these names after which a sequence
        ``can_begin``, for one more sequence to hold; of windows only the pages that the next token sees. Also returns
        the number of blocks."""
        shared_names = names[: self.known(names)]
        for count in range(len(shared_names), 0, -1):
            if not can_begin(shared_names[count - 1]):
                continue
            # Every page has the name of its last block.
            page_names = [*shared_names[PAGE // BLOCK - 1 : count - 1 : PAGE // BLOCK], shared_names[count - 1]]
            first = max(0, count * BLOCK + 1 - self._window) // PAGE if self._window else 0
            near_names = page_names[first:] if self._window else []
            if all(map(self._near.has, near_names)):
                whole = [self._whole.find(name) for name in page_names]
                near = [_RELEASED] * first + [self._near.find(name) for name in near_names]
                return self.shared(SequencePages(whole, near, first)), count
        return SequencePages(), 0

    def _both(self, pages: SequencePages) -> list[tuple[PagePool, list[int]]]:
        return [(self._whole, pages.whole), *([(self._near, pages.near)] if self._window else [])]

    def _held(self, pages: SequencePages, first: int = 0) -> list[tuple[PagePool, list[int]]]:
        """The pages from ``first`` on that a sequence holds."""
        return [(self._whole, pages.whole[first:]), (self._near, pages.near[max(first, pages.released) :])]


def page_tables(sequences: Sequence[SequencePages], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Tables int64 [sequences, ``width``] of both kinds of pages; the same where no state has a window."""
    shape = len(sequences), width
    whole, near = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for at, pages in enumerate(sequences):
        whole[at, : len(pages)] = pages.whole
        near[at, : len(pages)] = pages.near or pages.whole
    return whole, near
