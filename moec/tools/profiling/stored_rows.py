"""Rows of inputs in a file, which other processes read, too."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from moec.common.mapped_files import map_file

Array = np.ndarray[Any, Any]


class StoredRows:
    """Rows [n,size] in a file."""

    def __init__(self, path: pathlib.Path, size: int) -> None:
        self._path, self._size, self.count = path, size, 0

    def add(self, rows: Array) -> None:
        """Append rows. Raises OSError for a full disk."""
        with self._path.open("ab") as file:
            file.write(np.ascontiguousarray(rows, np.float32).data)
        self.count += len(rows)

    def read(self) -> Array:
        """Map all rows, in float32."""
        if not self.count * self._size:
            return np.zeros((self.count, self._size), np.float32)
        return map_file(self._path).view(np.float32).reshape(self.count, self._size)
