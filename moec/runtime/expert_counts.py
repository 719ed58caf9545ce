"""Counts of chosen experts in a file: the next process begins with those in memory that were chosen most."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence

import numpy as np

from moec.common.array_files import check_arrays_destination, read_arrays, write_arrays
from moec.common.errors import InputError
from moec.common.specs import StreamedExpertsSpec

_MOST = 1 << 53
"""Bound of a count, which leaves room for sums."""


class ExpertCounts:
    """File with an array int64[experts] for each layer: how often each expert was chosen, over all processes.

    Processes add to the file; of two that end at the same moment, one may be lost.
    """

    def __init__(self, path: str | os.PathLike[str], streamed: Sequence[StreamedExpertsSpec]) -> None:
        """Raise MoecError where the file is not moec's own, InputError where it is not of these layers."""
        self._path = pathlib.Path(path)
        self._sizes = {f"{number}:{spec.name}": spec.experts for number, spec in enumerate(streamed)}
        check_arrays_destination(path)
        self.before = self._read()
        """Counts of earlier processes, an array for each layer; zeros where there is no file."""
        self._added = [np.zeros_like(counts) for counts in self.before]

    def add(self, chosen: Sequence[np.ndarray]) -> None:
        """Add what was ``chosen`` since the model was loaded, an array for each layer, in one step. Adding the same
        again changes nothing. Raises as the constructor."""
        new = [counts - added for counts, added in zip(chosen, self._added, strict=True)]
        if any(counts.any() for counts in new):
            sums = (np.minimum(before + counts, _MOST) for before, counts in zip(self._read(), new, strict=True))
            write_arrays(self._path, dict(zip(self._sizes, sums, strict=True)))
            self._added = [counts.copy() for counts in chosen]

    def _read(self) -> list[np.ndarray]:
        if not self._path.exists():
            return [np.zeros(size, np.int64) for size in self._sizes.values()]
        arrays = read_arrays(self._path)
        actual = {name: (array.dtype, array.shape) for name, array in arrays.items()}
        if actual != {name: (np.dtype(np.int64), (size,)) for name, size in self._sizes.items()}:
            raise InputError(
                f"{self._path}: has counts of {len(actual)} layers that are not those of this model "
                f"({len(self._sizes)} layers of experts); remove it or choose another file"
            )
        if any(((counts < 0) | (counts > _MOST)).any() for counts in arrays.values()):
            raise InputError(f"{self._path}: has a count that is none; expected 0 to {_MOST}; remove the file")
        return [arrays[name] for name in self._sizes]
