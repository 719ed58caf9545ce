"""Many cases of a kind in worker processes, and the table of what they came to."""

from __future__ import annotations

import collections
import pathlib
import tempfile
from collections.abc import Iterable, Iterator

from ...isolated import run_isolated
from .judge import Case, Verdict, judge, verdict_of
from .kinds import kind_named

STATUSES = ("pass", "refused", "wrong", "crashed", "hung", "memory")
_ADDRESSES = 64
"""Gigabytes of addresses of a process; the judge limits each case to less."""


def sweep(kind: str, numbers: Iterable[int], seed: int, workers: int = 1) -> Iterator[tuple[Case, Verdict]]:
    """The cases of these numbers, as they end, in processes that have 60 seconds for each."""
    with tempfile.TemporaryDirectory() as name:
        base = pathlib.Path(name)
        kind_named(kind).prepare(base)
        cases = [Case(kind, name, seed, index) for index in numbers]
        for case, found in run_isolated(judge, cases, workers=workers, gigabytes=_ADDRESSES):
            yield case, verdict_of(case, found)


def table(result: Iterable[tuple[str, Verdict]]) -> str:
    """A row for each kind."""
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for kind, verdict in result:
        counts[kind][verdict.status] += 1
        counts["all"][verdict.status] += 1
    counts["all"] = counts.pop("all", collections.Counter())
    rows = [("", "cases", *STATUSES)]
    rows += [(kind, str(row.total()), *(str(row[status]) for status in STATUSES)) for kind, row in counts.items()]
    return "\n".join(f"{name:14}" + "".join(f"{cell:>9}" for cell in cells) for name, *cells in rows)
