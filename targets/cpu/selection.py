"""Choosing a kernel: every kernel says whether it can implement a problem and why (not); the first that can wins."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from moec.errors import UnsupportedError
from moec.targets.base import Candidate, Eligibility
from moec.targets.cpu.machine import Machine


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel as the selector sees it. ``can_implement`` is pure: it depends on the problem and the machine alone."""

    name: str
    can_implement: Callable[[Any, Machine], Eligibility]


def select(kernels: Sequence[Kernel], problem: Any, machine: Machine) -> tuple[str, list[Candidate]]:
    """The name of the first eligible kernel (the list is in order of preference) and the account of all of them.

    Raises UnsupportedError giving every kernel's reason if none is eligible.
    """
    answers = [(kernel.name, kernel.can_implement(problem, machine)) for kernel in kernels]
    winner = next((name for name, answer in answers if answer.ok), None)
    if winner is None:
        reasons = "; ".join(f"{name}: {answer.reason}" for name, answer in answers)
        raise UnsupportedError(f"no CPU kernel computes {problem}: {reasons}")
    return winner, [Candidate(name, answer.ok, answer.reason, chosen=name == winner) for name, answer in answers]
