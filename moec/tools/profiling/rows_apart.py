"""Rows of data that a profile sets apart: some to judge by, which are not measured, and some to run again."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from moec.common.specs import TensorSpec
from moec.tools.data import Batch

EVERY = 8
"""Period of rows: the last of so many is held back, and the first is run again to measure sensitivities."""
MOST_POSITIONS = 4096
"""Bound of the tokens in rows that are held back, as far as the inputs tell."""
_MOST_LOGITS = 1 << 26
"""Bound of the elements of outputs that are kept in memory."""


@dataclasses.dataclass
class RowsApart:
    """Splitter of batches of inputs ``specs``. ``held_back``: rows that are not measured; ``again``: rows that are
    measured and run once more. Neither grows beyond ``most`` positions.

    Rows are counted by the first axis, where all inputs have it and its size is dynamic; otherwise a whole batch is one
    row.
    """

    specs: Sequence[TensorSpec]
    most: int = MOST_POSITIONS
    held_back: list[Batch] = dataclasses.field(default_factory=list)
    again: list[Batch] = dataclasses.field(default_factory=list)
    _seen: int = 0

    def split(self, batch: Batch) -> Batch | None:
        """Return the batch without the rows that are held back, or None where no row is left."""
        rows = self._rows(batch)
        places = (self._seen + np.arange(rows or 1)) % EVERY
        self._seen += len(places)
        apart = places == EVERY - 1 if positions_of(self.held_back) < self.most else np.zeros(len(places), bool)
        if (places == 0).any() and positions_of(self.again) < self.most:
            self.again.append(_picked(batch, places == 0, rows))
        if not apart.any():
            return batch
        self.held_back.append(_picked(batch, apart, rows))
        return None if apart.all() else _picked(batch, ~apart, rows)

    def _rows(self, batch: Batch) -> int:
        """Count the rows of a batch; 0 where it cannot be split."""
        free = all(spec.shape and isinstance(spec.shape[0], str) for spec in self.specs if spec.name in batch)
        counts = {len(array) if array.ndim else 0 for array in batch.values()}
        return counts.pop() if free and len(counts) == 1 else 0


def most_positions(classes: int) -> int:
    """Number of positions to set apart, for a model whose output has ``classes`` entries for each position, because all
    of these outputs are kept in memory."""
    return max(1, min(MOST_POSITIONS, _MOST_LOGITS // max(1, classes)))


def _picked(batch: Batch, rows: np.ndarray, splits: int) -> Batch:
    return {name: np.ascontiguousarray(array[rows]) for name, array in batch.items()} if splits else batch


def positions_of(batches: Sequence[Batch]) -> int:
    """Count the tokens in batches at least: the elements of the smallest input of each."""
    return sum(min((array.size for array in batch.values()), default=0) for batch in batches)


def cut(batches: Sequence[Batch], positions: int) -> list[Batch]:
    """Take the first batches that together hold ``positions`` positions; the last one is cut to the rows that are
    needed, at least one."""
    kept: list[Batch] = []
    for batch in batches:
        missing = positions - positions_of(kept)
        if kept and missing <= 0:
            break
        counts = {len(array) if array.ndim else 0 for array in batch.values()}
        rows = counts.pop() if len(counts) == 1 else 0
        needed = -(-missing * rows // max(1, positions_of([batch])))
        kept.append({name: array[: max(1, needed)] for name, array in batch.items()} if needed < rows else batch)
    return kept
