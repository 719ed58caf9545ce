"""The plan of the kit: the steps of its calls, in the order of their value."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class KitStep:
    """A step of ``call`` 1, 2 or 3: the module of :mod:`kit.carried` that takes it, and its arguments.

    ``rank``: steps of a call go by it. ``needs``: what has to be there: ``gpu``, ``torch``, ``triton``, or a program.
    ``emulated``: whether the emulator can take it instead. ``together``: steps of one such name that follow
    each other run side by side. ``apart``: whether outcomes are counted apart, because a failure proves little.
    """

    call: int
    rank: int
    name: str
    module: str
    arguments: tuple[str, ...] = ()
    seconds: float = 60
    needs: tuple[str, ...] = ("gpu",)
    emulated: bool = True
    together: str = ""
    apart: bool = False


class KitPlan:
    """Steps, which packing adds."""

    def __init__(self) -> None:
        self._steps: list[KitStep] = []
        self.left_out: dict[str, str] = {}
        """Reasons why models are not in the kit, by name."""

    def add(self, step: KitStep) -> None:
        self._steps.append(step)

    def as_data(self) -> list[dict[str, Any]]:
        return [dataclasses.asdict(step) for step in sorted(self._steps, key=lambda step: (step.call, step.rank))]
