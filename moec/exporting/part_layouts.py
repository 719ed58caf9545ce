"""The way in which an array of a file holds parts of one expert: one part, or gate and up together, perhaps turned.

A layout is found by trial: it is the one that makes the array of the parts that the source's graph has, number for
number. So no table of model families is needed, and an array whose parts a frontend changed has none.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from moec.ir.expert_weights import Part

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class PartLayout:
    """``parts``: the part, or the two parts in their order. ``turned``: whether a matrix has outputs first; graphs have
    inputs first. ``axis``: that along which two parts are joined, one behind the other, or ``interleaved``."""

    parts: tuple[Part, ...]
    turned: bool = False
    axis: int = 0
    interleaved: bool = False

    def of(self, arrays: Mapping[Part, Array]) -> Array:
        """Make the file's array of matrices [in,out], or of biases [out], by part."""
        pieces = [arrays[part].T if self.turned else arrays[part] for part in self.parts]
        if len(pieces) == 1:
            return pieces[0]
        if not self.interleaved:
            return np.concatenate(pieces, axis=self.axis)
        shape = list(pieces[0].shape)
        shape[self.axis] *= len(pieces)
        return np.stack(pieces, axis=self.axis + 1).reshape(shape)


def layout_of(array: Array, arrays: Mapping[Part, Array]) -> PartLayout | None:
    """Find the layout of a file's array, from parts that it may consist of; None if it is none of them."""
    for layout in _layouts(arrays, array.ndim):
        size = sum(arrays[part].size for part in layout.parts)
        if array.size == size and np.array_equal(layout.of(arrays), array, equal_nan=True):
            return layout
    return None


def _layouts(arrays: Mapping[Part, Array], rank: int) -> Iterator[PartLayout]:
    turns = (True, False) if rank > 1 else (False,)
    for part, turned in itertools.product(arrays, turns):
        yield PartLayout((part,), turned)
    pairs: tuple[tuple[Part, Part], ...] = (("gate", "up"), ("up", "gate"))
    for pair, turned, axis, interleaved in itertools.product(pairs, turns, range(rank), (False, True)):
        if set(pair) <= set(arrays):
            yield PartLayout(pair, turned, axis, interleaved)
