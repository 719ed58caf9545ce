"""The table of what becomes of every case, by operator: ``status.txt``, checked in.

An operator's line counts; the lines below it name the cases that do not pass, with the reason::

    Celu: 5 cases, 4 pass, 1 refused
      refused test_celu_bfloat16: node 'Y' (Celu): ...
"""

from __future__ import annotations

import collections
import pathlib
import re
from collections.abc import Mapping

from .cases import Case
from .outcome import Outcome

PATH = pathlib.Path(__file__).with_name("status.txt")
_ROW = re.compile(r"  (\w+) (\w+): (.*)")
_LONGEST = 200


def read() -> dict[str, Outcome]:
    """The cases that do not pass, by name; the others of the table do."""
    rows = map(_ROW.fullmatch, PATH.read_text(encoding="utf-8").splitlines())
    return {row[2]: Outcome(row[1], row[3]) for row in rows if row}


def write(cases: Mapping[str, Case], outcomes: Mapping[str, Outcome]) -> None:
    PATH.write_text(text_of(cases, outcomes), encoding="utf-8")


def text_of(cases: Mapping[str, Case], outcomes: Mapping[str, Outcome]) -> str:
    by_operator: dict[str, list[str]] = collections.defaultdict(list)
    for name in sorted(outcomes):
        by_operator[cases[name].operator].append(name)
    lines = [f"All: {_counts(outcomes.values())}"]
    for operator, names in sorted(by_operator.items()):
        lines.append(f"{operator}: {_counts([outcomes[name] for name in names])}")
        for name in names:
            if outcomes[name].status != "pass":
                detail = " ".join(outcomes[name].detail.split())[:_LONGEST]
                lines.append(f"  {outcomes[name].status} {name}: {detail}".rstrip())
    return "\n".join(lines) + "\n"


def _counts(outcomes: collections.abc.Collection[Outcome]) -> str:
    counts = collections.Counter(outcome.status for outcome in outcomes)
    listed = [
        f"{counts[status]} {status}" for status in ("pass", "refused", "wrong", "crashed", "hung") if counts[status]
    ]
    return f"{len(outcomes)} cases, {', '.join(listed)}"
