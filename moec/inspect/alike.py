"""Compact texts for similar rows: names that differ by numbers, consecutive numbers, and rows of equal cells."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

MOST_RUNS = 6
"""Most runs of numbers that are listed; of more, only the first and the last number are."""
MOST_NAMES = 4
"""Most names that are listed; the others are counted."""
_NUMBER = re.compile(r"(\d+)")


def ranges(numbers: Iterable[int]) -> str:
    """Write numbers, each once and in order, as ``0-3, 5``; many runs as ``0...95``."""
    ordered = sorted(set(numbers))
    starts = [place for place, number in enumerate(ordered) if place == 0 or number != ordered[place - 1] + 1]
    runs = [ordered[start:end] for start, end in zip(starts, [*starts[1:], len(ordered)], strict=True)]
    if len(runs) > MOST_RUNS:
        return f"{ordered[0]}...{ordered[-1]}"
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def words_of(name: str) -> tuple[str, ...]:
    """Remove the numbers from a name. Similar names have equal words."""
    return tuple(_NUMBER.split(name)[::2])


def names(listed: Sequence[str]) -> str:
    """Write names in the order of their first ones, those that differ by numbers once: ``past_key_{0-23}, mask``."""
    alike: dict[tuple[str, ...], list[list[str]]] = {}
    for name in dict.fromkeys(listed):
        alike.setdefault(words_of(name), []).append(_NUMBER.split(name)[1::2])
    texts = [_pattern(words, numbers) for words, numbers in alike.items()]
    more = f" and {len(texts) - MOST_NAMES} more" if len(texts) > MOST_NAMES else ""
    return ", ".join(texts[:MOST_NAMES]) + more


def merged(rows: Sequence[Sequence[str]]) -> list[tuple[list[int], Sequence[str]]]:
    """Merge rows with equal cells. Returns the places of each, in the order of the first ones."""
    places: dict[tuple[str, ...], list[int]] = {}
    for place, row in enumerate(rows):
        places.setdefault(tuple(row), []).append(place)
    return [(own, rows[own[0]]) for own in places.values()]


def _pattern(words: Sequence[str], numbers: Sequence[Sequence[str]]) -> str:
    """Write several names with the same words as one, with the numbers of each between the words."""
    text = words[0]
    for word, column in zip(words[1:], zip(*numbers, strict=True), strict=True):
        text += (column[0] if len(set(column)) == 1 else f"{{{ranges(map(int, column))}}}") + word
    return text
