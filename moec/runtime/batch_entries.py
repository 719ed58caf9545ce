"""States of a batch that each run replaces, such as those of recurrences: memory with one entry for the states of one
sequence.

A run reads a sequence's entry and writes the states after its tokens to another entry. So an entry never changes while
it is held: forks share entries, an entry can be kept for sequences that begin alike, and a failed run changes no
sequence.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from moec.common.dtypes import dtype_of
from moec.common.errors import MoecError
from moec.common.specs import State, TensorSpec
from moec.runtime.device import Device
from moec.runtime.held import Pages

FIRST = 0
"""Entry of zeros, before the first token."""


class BatchEntries:
    """Memory for ``max_sequences`` entries of sequences, as many that a run writes, and twice as many that are kept for
    beginnings of texts."""

    def __init__(
        self, states: Sequence[State], inputs: Sequence[TensorSpec], max_sequences: int, device: Device
    ) -> None:
        """``device``: where the memory is. Raises MoecError where there is no memory for that."""
        names = {state.input for state in states if state.axis is None}
        self._most, count = 2 * max_sequences, 1 + 4 * max_sequences
        self.arrays = {
            spec.name: _new_entries(spec, count, max_sequences, device) for spec in inputs if spec.name in names
        }
        """Memory [entries, 1, ...] of each state, by the name of its input."""
        self._holders = np.zeros(count, np.int64)
        self._free = [*range(count - 1, FIRST, -1)]
        self._kept: dict[bytes, int] = {}

    def __bool__(self) -> bool:
        """Whether the model has such states."""
        return bool(self.arrays)

    @property
    def bytes_in_use(self) -> int:
        """Bytes of the entries of sequences and of those that are kept. Shared ones count once."""
        entry_bytes = sum(math.prod(array.shape[1:]) * array.dtype.itemsize for array in self.arrays.values())
        return int(np.count_nonzero(self._holders)) * entry_bytes

    @contextlib.contextmanager
    def taking(self, count: int) -> Iterator[list[int]]:
        """Context of a run that writes to ``count`` entries. It holds them afterwards, unless it fails."""
        if not self:
            yield [FIRST] * count
            return
        taken = [self._free.pop() for _ in range(count)]
        self._holders[taken] = 1
        try:
            yield taken
        except BaseException:
            for entry in taken:
                self.release(entry)
            raise

    def hold(self, entry: int) -> None:
        """Add a holder, a sequence or a kept text, to an entry."""
        if entry != FIRST:
            self._holders[entry] += 1

    def release(self, entry: int) -> None:
        """Remove a holder from an entry."""
        if entry == FIRST:
            return
        self._holders[entry] -= 1
        if not self._holders[entry]:
            self._free.append(entry)

    def keep(self, name: bytes, entry: int) -> None:
        """Keep an entry for texts that begin alike, under a name that identifies all tokens before it. The entry that
        was kept or found longest ago makes room."""
        self.hold(entry)
        self._forget([name] if name in self._kept else [])
        self._forget([*self._kept][: max(0, len(self._kept) + 1 - self._most)])
        self._kept[name] = entry

    def has(self, name: bytes) -> bool:
        """Whether a sequence can begin with the text of a name: its entry is kept, or the model has no such states."""
        return not self or name in self._kept

    def find(self, name: bytes) -> int:
        """Return the entry after the text of a name, held by one more sequence."""
        if not self:
            return FIRST
        entry = self._kept[name] = self._kept.pop(name)
        self.hold(entry)
        return entry

    def forget(self, is_of_use: Callable[[bytes], bool]) -> None:
        """Forget the kept entries whose names are of no use."""
        self._forget([name for name in self._kept if not is_of_use(name)])

    def _forget(self, names: Sequence[bytes]) -> None:
        for name in names:
            self.release(self._kept.pop(name))


def _new_entries(spec: TensorSpec, count: int, max_sequences: int, device: Device) -> Pages:
    shape, dtype = (count, 1, *(int(size) for size in spec.shape[1:])), dtype_of(spec.dtype)
    try:
        with device.working([]):
            return device.new(shape, dtype, zeros=True)
    except (MemoryError, ValueError) as error:
        raise MoecError(
            f"there is no memory for state {spec.name!r} ({dtype}{list(shape)}) of {max_sequences} sequences; make a "
            "batch for fewer (max_sequences)"
        ) from error
