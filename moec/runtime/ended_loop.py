"""States of a loop of a program behind its last step, and slices of its results."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from moec.common.errors import InputError


class Slices:
    """The slices of one result that the steps of a loop make. ``steps``: how many there will be; None where only the
    last step tells."""

    def __init__(self, steps: int | None) -> None:
        self._steps, self._count = steps, 0
        self._room, self._kept = np.empty(0), list[np.ndarray]()
        self.first: np.ndarray | None = None

    def add(self, array: np.ndarray) -> None:
        """Keep a copy. Raises InputError for one of another size than those before, MemoryError where there is no room
        for those of all steps."""
        if self.first is None:
            self._room = np.empty((self._steps or 1, *array.shape), array.dtype)
            self.first = self._room[0, ...]
        if array.shape != self.first.shape:
            sizes = f"{list(self.first.shape)} and {list(array.shape)}"
            raise InputError(f"the steps of a loop make slices of sizes {sizes}; expected equal sizes")
        if self._steps is None:
            self._kept.append(array.copy())
        else:
            self._room[self._count] = array
        self._count += 1

    def write(self, axis: int, is_backward: bool, y: np.ndarray) -> None:
        """Write them side by side along an axis of y, the last one first where ``is_backward``."""
        rows = self._kept if self._steps is None else self._room
        order = slice(None, None, -1 if is_backward else 1)
        moved = np.moveaxis(y, axis, 0)[order]
        for place, row in enumerate(rows):
            moved[place, ...] = row

    @property
    def bytes(self) -> int:
        return 0 if self.first is None else self._count * self.first.nbytes


@dataclasses.dataclass(frozen=True)
class EndedLoop:
    """A loop that has ended: its states, and the slices of each result."""

    states: Sequence[Any]
    slices: Sequence[Slices]
