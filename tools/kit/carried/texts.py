"""The report of one call as text: at most 200 lines, with failures first and then what steps found."""

from __future__ import annotations

import pathlib
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .steps import ABSENT, FAILED, PASSED, TIMED_OUT, replace_text

LINES, WIDTH = 200, 160
FOUND = "* "
"""The beginning of lines of a step's output that are findings."""
_SHOWN_OF_FAILURE, _LINES_OF_FAILURES = 6, 60

Results = Mapping[str, Mapping[str, Any]]
Plan = Sequence[Mapping[str, Any]]


def write_text(path: pathlib.Path, results: Results, plan: Plan, about: Mapping[str, Any]) -> None:
    """Write the report. ``plan``: the steps of the call; ``about``: that of the kit. Raises OSError."""
    lines = list(_lines(results, plan, about))
    if len(lines) > LINES:
        lines = [*lines[: LINES - 1], f"... {len(lines) - LINES + 1} more lines: report.json has all"]
    replace_text(path, "".join(f"{line[:WIDTH]}\n" for line in lines))


def counts_text(results: Results, plan: Plan) -> str:
    """Count outcomes of the plan's steps; those that prove little are counted apart."""
    counted = [step["name"] for step in plan if not step["apart"]]
    apart = [step["name"] for step in plan if step["apart"]]
    return f"{_counts(results, counted)}{f'; apart: {_counts(results, apart)}' if apart else ''}"


def _counts(results: Results, names: Sequence[str]) -> str:
    outcomes = [results[name]["outcome"] for name in names if name in results]
    texts = [f"{outcomes.count(outcome)} {outcome}" for outcome in (PASSED, FAILED, TIMED_OUT, ABSENT)]
    return f"{', '.join(texts)}, {len(names) - len(outcomes)} not taken"


def _lines(results: Results, plan: Plan, about: Mapping[str, Any]) -> Iterator[str]:
    yield counts_text(results, plan)
    yield f"moec {about['revision']}, for {about['architecture']}"
    yield from (f"not in the kit: {name}: {reason}" for name, reason in about["left_out"].items())
    taken = {step["name"]: results[step["name"]] for step in plan if step["name"] in results}
    apart = [step["name"] for step in plan if step["apart"] and step["name"] in results]
    yield from _failures({name: result for name, result in taken.items() if name not in apart})
    for name, result in taken.items():
        findings = [line[len(FOUND) :] for line in result["output"].splitlines() if line.startswith(FOUND)]
        if findings:
            yield f"{name} ({result['seconds']:.0f} s)"
            yield from (f"    {line}" for line in findings)
    yield from (f"apart, {taken[name]['outcome']}: {name}" for name in apart)
    reasons: dict[str, list[str]] = {}
    for name, result in taken.items():
        if result["outcome"] == ABSENT:
            reasons.setdefault(result["output"], []).append(name)
    for reason, names in reasons.items():
        yield from _list(f"absent, {reason}", names)
    passed = [name for name, result in taken.items() if result["outcome"] == PASSED and FOUND not in result["output"]]
    yield from _list("passed", passed)
    yield from _list("not taken", [step["name"] for step in plan if step["name"] not in results])


def _failures(results: Results) -> Iterator[str]:
    """The end of what failed steps said; those with the same last line together."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name, result in results.items():
        if result["outcome"] in (FAILED, TIMED_OUT):
            last = result["output"].strip().rpartition("\n")[2]
            groups.setdefault((result["outcome"], last), []).append(name)
    lines = []
    for (outcome, _), names in groups.items():
        lines += _list(outcome, names)
        output = results[names[0]]["output"].strip().splitlines()[-_SHOWN_OF_FAILURE:]
        lines += [f"    {line}" for line in output]
    yield from lines[:_LINES_OF_FAILURES]
    if len(lines) > _LINES_OF_FAILURES:
        yield f"    ... {len(lines) - _LINES_OF_FAILURES} more lines of failures: report.json has all"


def _list(what: str, names: Sequence[str]) -> list[str]:
    return textwrap.wrap(f"{what}: {', '.join(names)}", WIDTH, subsequent_indent="    ") if names else []
