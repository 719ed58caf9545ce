"""Conversion of labels, which are numbers of elements, to the pieces of constants in which an expert's entry lies.

Labels are read only at a few columns, because each costs an evaluation. If three of them ascend by equal steps, so do
those between. Shards of a weight are separated by halving.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from moec.passes.raising.dataflow import Array
from moec.passes.raising.failure import NotUnderstoodError

MOST_READ = 64
"""Columns that are read at most."""
SCATTERED = "the weights of an expert lie scattered"
Piece = tuple[slice, slice, int, tuple[int, int]]
"""Rows and columns of an entry, the label at the first of both, and the steps to the next row and column."""


def sampled(read: Callable[[int], Array], size: int) -> tuple[Array, Array]:
    """Columns [m] of so many, and their labels [...,m], which ``read`` gives for one; labels go up by equal steps from
    one of these columns to the next. Raises NotUnderstoodError if too many have to be read for that."""
    cached: dict[int, Array] = {}

    def at(column: int) -> Array:
        if column not in cached:
            if len(cached) == MOST_READ:
                raise NotUnderstoodError(SCATTERED)
            cached[column] = read(column)
        return cached[column]

    pending = [(0, size - 1)]
    for column in {0, min(1, size - 1), size - 1}:
        at(column)
    while pending:
        first, last = pending.pop()
        middle = (first + last) // 2
        if middle == first:
            continue
        rise, run = at(middle) - at(first), at(last) - at(middle)
        if not np.array_equal(rise * (last - middle), run * (middle - first)):
            pending += [(first, middle), (middle, last)]
    columns = np.array(sorted(cached))
    return columns, np.stack([cached[column] for column in columns], axis=-1)


def pieces(labels: Array, columns: Array, owner: Array) -> Iterator[Piece]:
    """The pieces of an entry with labels [rows,m] at some of its columns [m]. ``owner`` [rows,m] are the constants that
    the labels are of: no piece lies in two. Raises NotUnderstoodError if labels between two columns are unknown."""
    for top, bottom in _alike(labels, owner):
        down = labels[top + 1] - labels[top] if bottom > top + 1 else np.zeros(len(columns), np.int64)
        together = (owner[top, 1:] == owner[top, :-1]) & (down[1:] == down[:-1])
        for left, right, place, across in _runs(labels[top], columns, together):
            first = int(labels[top, place] - (columns[place] - left) * across)
            yield slice(top, bottom), slice(left, right), first, (int(down[place]), across)


def _alike(labels: Array, owner: Array) -> Iterator[tuple[int, int]]:
    """Runs of rows [rows,m] that go up by the same steps, column by column, in the same constants."""
    rows = len(labels)
    elsewhere = np.flatnonzero((owner[1:] != owner[:-1]).any(axis=1)) + 1
    other_step = np.flatnonzero((np.diff(labels, n=2, axis=0) != 0).any(axis=1)) + 2
    start = 0
    for row in sorted({*elsewhere.tolist(), *other_step.tolist()}):
        if row in elsewhere or row > start + 1:
            yield start, row
            start = row
    yield start, rows


def _runs(labels: Array, columns: Array, together: Array) -> Iterator[tuple[int, int, int, int]]:
    """Runs of labels [m] at columns [m] that go up by equal steps: where each begins and ends, the number of a label
    that it holds or follows, and the step. ``together`` [m-1] are neighbours that may be of one run."""
    place, left, gaps = 0, 0, np.diff(columns)
    rises = np.diff(labels)
    while True:
        end, across = place, 0
        if place < len(gaps) and together[place] and rises[place] % gaps[place] == 0:
            across = int(rises[place] // gaps[place])
            same = together[place:] & (rises[place:] == across * gaps[place:])
            end = place + int(np.append(~same, True).argmax())
        if int(columns[end]) + 1 > left:
            yield left, int(columns[end]) + 1, place, across
        elif end == place:
            raise NotUnderstoodError(SCATTERED)
        if end == len(gaps):
            return
        left = int(columns[end]) + 1
        place = end if gaps[end] > 1 else end + 1
