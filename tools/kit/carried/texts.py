"""The report as text: at most 200 lines, with failures first and then what steps found."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .steps import ABSENT, FAILED, PASSED, TIMED_OUT

LINES, WIDTH = 200, 160
FOUND = "* "
"""The beginning of lines of a step's output that are findings."""
_SHOWN_OF_FAILURE = 6


def write_text(path: pathlib.Path, results: Mapping[str, Mapping[str, Any]], plan: Sequence[Mapping[str, Any]]) -> None:
    """Write the report."""
    lines = list(_lines(results, plan))
    if len(lines) > LINES:
        lines = [*lines[: LINES - 1], f"... {len(lines) - LINES + 1} more lines: report.json has all"]
    path.write_text("".join(f"{line[:WIDTH]}\n" for line in lines), encoding="utf-8")


def _lines(results: Mapping[str, Mapping[str, Any]], plan: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    by_outcome: dict[str, list[str]] = {outcome: [] for outcome in (PASSED, FAILED, TIMED_OUT, ABSENT)}
    for name, result in results.items():
        by_outcome[result["outcome"]].append(name)
    left = [step["name"] for step in plan if step["name"] not in results]
    yield ", ".join(f"{len(names)} {outcome}" for outcome, names in by_outcome.items()) + f", {len(left)} not taken"
    for outcome in (FAILED, TIMED_OUT):
        for name in by_outcome[outcome]:
            yield f"{outcome}: {name}"
            yield from (f"    {line}" for line in results[name]["output"].strip().splitlines()[-_SHOWN_OF_FAILURE:])
    for name, result in results.items():
        findings = [line[len(FOUND) :] for line in result["output"].splitlines() if line.startswith(FOUND)]
        if findings:
            yield f"{name} ({result['seconds']:.0f} s)"
            yield from (f"    {line}" for line in findings)
    reasons: dict[str, list[str]] = {}
    for name in by_outcome[ABSENT]:
        reasons.setdefault(results[name]["output"], []).append(name)
    yield from (f"absent, {reason}: {', '.join(names)}" for reason, names in reasons.items())
    silent = [name for name in by_outcome[PASSED] if FOUND not in results[name]["output"]]
    yield f"passed: {', '.join(silent)}" if silent else ""
    yield f"not taken: {', '.join(left)}" if left else ""
