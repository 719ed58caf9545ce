"""A stored matrix whose tables are read when they are asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from moec.ir.weights.encode import Table

Array = np.ndarray[Any, Any]


class LazyMatrix:
    """A matrix whose arrays are read, or computed, when they are first asked for."""

    def __init__(self, read: Callable[[Table], Array | None]) -> None:
        """``read``: one of the arrays; None where the format has none."""
        self._read = read
        self._known: dict[Table, Array | None] = {}

    def read(self, table: Table) -> Array | None:
        """The array of that name."""
        if table not in self._known:
            self._known[table] = self._read(table)
        return self._known[table]

    @property
    def data(self) -> Array:
        array = self.read("data")
        assert array is not None
        return array

    @property
    def scale(self) -> Array | None:
        return self.read("scale")

    @property
    def zero_point(self) -> Array | None:
        return self.read("zero_point")

    @property
    def minimum(self) -> Array | None:
        return self.read("minimum")

    def mapped(self, change: Callable[[Array], Array]) -> LazyMatrix:
        """A matrix whose arrays are the results of ``change`` on these."""
        return LazyMatrix(lambda table: None if (array := self.read(table)) is None else change(array))
