"""States of a batch that each run replaces, such as those of recurrences: one entry for each sequence.

Nobody writes to an entry: a run makes new ones. So forks share theirs, and an entry may stay for sequences that begin
alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from moec.common.dtypes import dtype_of
from moec.common.specs import State, TensorSpec


@dataclasses.dataclass(frozen=True, eq=False)
class StateEntry:
    """States of one sequence: entry ``number`` of ``arrays`` [sequences, ...], by the name of the input."""

    arrays: Mapping[str, np.ndarray]
    number: int

    def alone(self) -> StateEntry:
        """The entry without those of other sequences, so that their memory can be freed."""
        if all(len(array) == 1 for array in self.arrays.values()):
            return self
        return StateEntry({name: array[self.number, None].copy() for name, array in self.arrays.items()}, 0)


class BatchEntries:
    """Entries of the sequences of one batch, and of beginnings of texts, of which ``most`` are kept."""

    def __init__(self, states: Sequence[State], inputs: Sequence[TensorSpec], most: int) -> None:
        names = {state.input for state in states if state.axis is None}
        specs = [spec for spec in inputs if spec.name in names]
        shapes = {spec.name: [1, *(int(size) for size in spec.shape[1:])] for spec in specs}
        self.first = StateEntry({spec.name: np.zeros(shapes[spec.name], dtype_of(spec.dtype)) for spec in specs}, 0)
        """Entry before the first token."""
        self._most = most
        self._kept: dict[bytes, StateEntry] = {}

    def __bool__(self) -> bool:
        """Whether the model has such states."""
        return bool(self.first.arrays)

    def bytes_of(self, entries: Iterable[StateEntry]) -> int:
        """Bytes of the entries of sequences and of those that are kept. Shared ones count once."""
        distinct = {(id(entry.arrays), entry.number) for entry in (*entries, *self._kept.values())}
        distinct.discard((id(self.first.arrays), 0))
        return len(distinct) * sum(array.nbytes for array in self.first.arrays.values())

    def keep(self, name: bytes, entry: StateEntry) -> None:
        """Keep an entry for texts that begin alike, by a name that says all that it follows from. The one that was
        kept or found longest ago makes room."""
        self._kept.pop(name, None)
        while len(self._kept) >= self._most:
            del self._kept[next(iter(self._kept))]
        self._kept[name] = entry.alone()

    def has(self, name: bytes) -> bool:
        """Whether a sequence can begin with the text of that name."""
        return not self or name in self._kept

    def find(self, name: bytes) -> StateEntry:
        """Return the entry after the text of that name."""
        if not self:
            return self.first
        entry = self._kept[name] = self._kept.pop(name)
        return entry

    def forget(self, is_of_use: Callable[[bytes], bool]) -> None:
        """Forget the kept entries whose names are of no use."""
        self._kept = {name: entry for name, entry in self._kept.items() if is_of_use(name)}


def together(entries: Sequence[StateEntry]) -> Mapping[str, np.ndarray]:
    """States [sequences, ...] of a run on these sequences: the arrays of the run before where it was on the same."""
    arrays = entries[0].arrays
    are_in_order = all(entry.arrays is arrays and entry.number == at for at, entry in enumerate(entries))
    if are_in_order and all(len(array) == len(entries) for array in arrays.values()):
        return arrays
    return {name: np.stack([entry.arrays[name][entry.number] for entry in entries]) for name in arrays}
