"""Choosing a kernel: every kernel says whether it can implement a problem and why (not); the first that can wins.

A new kernel for an operator is one more row in that operator's tuple of :class:`Kernel`, before those it outdoes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from moec.errors import UnsupportedError
from moec.targets.base import Candidate, Eligibility

STORAGE_TYPES = ("float32", "float16", "bfloat16")
"""Element types that kernels load and store; they compute in float32."""


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel as the selector sees it. ``computes`` is its formula in one line. ``can_implement`` is pure: it depends
    on the problem and the machine alone."""

    name: str
    computes: str
    can_implement: Callable[[Any, Any], Eligibility]


@dataclasses.dataclass(frozen=True)
class Selection:
    """The kernel that was chosen, and the account of all that were considered."""

    kernel: Kernel
    candidates: list[Candidate]


def select(kernels: Sequence[Kernel], problem: Any, machine: Any) -> Selection:
    """The first eligible kernel: ``kernels`` is in order of preference.

    Raises UnsupportedError giving every kernel's reason if none is eligible.
    """
    answers = [(kernel, kernel.can_implement(problem, machine)) for kernel in kernels]
    winner = next((kernel for kernel, answer in answers if answer.ok), None)
    if winner is None:
        reasons = "; ".join(f"{kernel.name}: {answer.reason}" for kernel, answer in answers)
        raise UnsupportedError(f"no kernel can compute it: {reasons}")
    return Selection(winner, [_candidate(kernel, answer, winner) for kernel, answer in answers])


def _candidate(kernel: Kernel, answer: Eligibility, winner: Kernel) -> Candidate:
    chosen = kernel is winner
    reason = f"{answer.reason}; {winner.name} is preferred" if answer.ok and not chosen else answer.reason
    return Candidate(kernel.name, answer.ok, reason, chosen)


def by_storage(dtype: str, how: str, *, sums: bool = True) -> Eligibility:
    """Whether kernels can load and store the type; ``how`` says how a kernel that can does its work, ``sums`` whether
    any sums are part of it."""
    if dtype not in STORAGE_TYPES:
        return Eligibility(False, f"element type {dtype}; the kernel takes {', '.join(STORAGE_TYPES)}")
    return Eligibility(True, f"{how}; {dtype} in memory{', float32 sums' if sums else ''}")
