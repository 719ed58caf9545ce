"""Cases in worker processes."""

from __future__ import annotations

from collections.abc import Iterable

from ..isolated import Lost, run_isolated
from .cases import Case
from .outcome import Outcome, outcome_of

SECONDS, GIGABYTES = 60, 4


def sweep(cases: Iterable[Case], workers: int = 2) -> dict[str, Outcome]:
    """Compute the outcome of each case, by name."""
    results = run_isolated(outcome_of, list(cases), workers=workers, seconds=SECONDS, gigabytes=GIGABYTES)
    return {
        case.name: Outcome(result.kind, result.detail) if isinstance(result, Lost) else result
        for case, result in results
    }
