"""Differences between two records, as short texts."""

from __future__ import annotations

import difflib
import itertools
import pathlib
from collections.abc import Collection, Iterator

from replaying.records import Index, kept, read_indices

_BEFORE, _WINDOW = 2, 40
"""Lines that are compared before the first difference, and from it on."""


def differences(
    old: pathlib.Path, new: pathlib.Path, models: Collection[str], targets: Collection[str], lines: int
) -> Iterator[str]:
    """A text for each difference: models and targets that one record lacks, then texts that differ, each once for all
    targets. ``models``, ``targets``: those to compare; all where there are none. ``lines``: of a text, at most."""
    both = [chosen(folder, models, targets) for folder in (old, new)]
    for folder, indices in zip((old, new), both, strict=True):
        if not indices:
            yield f"{folder}: holds no record of what is to be compared"
        elif len({index.sources for index in indices.values()}) > 1:
            yield f"{folder}: was recorded from several versions of the sources; record it again"
    for key in sorted(both[0].keys() ^ both[1].keys()):
        yield f"{' for '.join(key)}: only in {old if key in both[0] else new}"
    changes: dict[tuple[str, str, str | None, str | None], list[str]] = {}
    for key in sorted(both[0].keys() & both[1].keys()):
        entries, others = both[0][key].entries, both[1][key].entries
        for name in sorted(entries.keys() | others.keys(), key=_order):
            if entries.get(name) != others.get(name):
                changes.setdefault((key[0], name, entries.get(name), others.get(name)), []).append(key[1])
    for (model, name, before, after), of_targets in changes.items():
        where = f"{model} for {', '.join(of_targets)}: {name}"
        if before is None or after is None:
            yield f"{where}: only in {new if before is None else old}"
        else:
            yield "\n  ".join([where, *diff(kept(old, before), kept(new, after))[:lines]])


def chosen(folder: pathlib.Path, models: Collection[str], targets: Collection[str]) -> dict[tuple[str, str], Index]:
    """The indices of a record, by model and target, of the models and targets that are asked for."""
    return {
        key: index
        for key, index in read_indices(folder).items()
        if (not models or key[0] in models) and (not targets or key[1] in targets)
    }


def _order(name: str) -> tuple[int, str]:
    """Sort by the order of a compilation."""
    steps = ("passes.txt", "refused.txt", "ir/", "choices/", "src/")
    return next((place for place, step in enumerate(steps) if name.startswith(step)), len(steps)), name


def diff(old: list[str] | None, new: list[str] | None) -> list[str]:
    """A unified diff around the first line that differs."""
    if old is None or new is None:
        return ["other bytes, which are no text"]
    pairs = itertools.zip_longest(old, new)
    first = next((place for place, (left, right) in enumerate(pairs) if left != right), 0)
    start = max(first - _BEFORE, 0)
    window = slice(start, first + _WINDOW)
    changed = difflib.unified_diff(old[window], new[window], lineterm="", n=_BEFORE)
    return [f"line {first + 1}", *(line[:200] for line in itertools.islice(changed, 3, None))]
