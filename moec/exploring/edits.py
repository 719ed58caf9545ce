"""Differences of two sequences, as edits."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Sequence

Edit = tuple[int, int, list[int]]
"""Place in the old sequence, number of elements removed there, and elements that come in their place."""


def edits(old: Sequence[int], new: Sequence[int]) -> list[Edit]:
    """Find edits that make ``new`` of ``old``, in order and without overlap.

    Elements that both have once, in the same order, stay: a patience diff, in n log n steps, where a shortest edit
    script could take n². Between two of them everything is replaced, except an equal start and an equal end.
    """
    results, at, new_at = [], 0, 0
    for place, new_place in [*_anchors(old, new), (len(old), len(new))]:
        first, last, new_first, new_last = at, place, new_at, new_place
        while first < last and new_first < new_last and old[first] == new[new_first]:
            first, new_first = first + 1, new_first + 1
        while first < last and new_first < new_last and old[last - 1] == new[new_last - 1]:
            last, new_last = last - 1, new_last - 1
        if first < last or new_first < new_last:
            results.append((first, last - first, list(new[new_first:new_last])))
        at, new_at = place + 1, new_place + 1
    return results


def _anchors(old: Sequence[int], new: Sequence[int]) -> list[tuple[int, int]]:
    """The longest list of places of elements that both have once, increasing in both (by patience sorting)."""
    counts, new_counts = Counter(old), Counter(new)
    places = {element: place for place, element in enumerate(new)}
    pairs = [(at, places[each]) for at, each in enumerate(old) if counts[each] == 1 == new_counts[each]]
    ends: list[int] = []  # the least last place of an increasing list of each length
    lists: list[tuple[tuple[int, int], int | None]] = []  # each pair, and the pair before it in the longest list
    tops: list[int] = []
    for pair in pairs:
        length = bisect.bisect_left(ends, pair[1])
        lists.append((pair, tops[length - 1] if length else None))
        ends[length : length + 1] = [pair[1]]
        tops[length : length + 1] = [len(lists) - 1]
    results, at = [], tops[-1] if tops else None
    while at is not None:
        pair, at = lists[at]
        results.append(pair)
    return results[::-1]
