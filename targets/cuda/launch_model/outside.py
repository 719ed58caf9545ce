"""Predictions for what a program launches outside of its layers of experts: dense products and attention above all."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from moec.runtime.manifest import ProgramEntry
from moec.targets.cuda.launch_model.kernel_calls import KernelCalls, PredictedLaunch
from moec.targets.cuda.launch_model.plans import ROWS, parse_plan
from moec.targets.cuda.launch_model.sizes import ModelSizes, kernel_sizes


@dataclasses.dataclass(frozen=True)
class RepeatedLaunch:
    """A launch that each of so many nodes makes."""

    launch: PredictedLaunch
    nodes: int

    @property
    def seconds(self) -> float:
        return self.nodes * self.launch.prediction.seconds


@dataclasses.dataclass(frozen=True)
class PredictedOutside:
    """At some number of tokens; a launch of which nothing is predicted may stand between any two of these."""

    tokens: int
    launches: tuple[RepeatedLaunch, ...]

    @property
    def seconds(self) -> float:
        return sum(one.seconds for one in self.launches)

    @property
    def operations(self) -> float:
        return sum(one.nodes * one.launch.prediction.operations for one in self.launches)


class Outside:
    """The kernels of a program that are launched for other nodes than ``layers``. ``others``: the records of those of
    which nothing is predicted, for they do not say how they share out their work, or have sizes that are computed."""

    def __init__(self, program: ProgramEntry, layers: set[str], calls: KernelCalls, model: ModelSizes) -> None:
        self._calls = calls
        self._planned, self.others = [], []
        self.called: tuple[Mapping[str, Any], str] | None = None
        """A product, and which of its sizes is the number of its rows."""
        for kernel in program.kernels:
            if not kernel["launches"] or layers.intersection(kernel["nodes"]):
                continue
            plan, where = parse_plan(kernel["plan"], calls.where(kernel)), calls.where(kernel)
            if plan is None or not model.tell(kernel, where):
                self.others.append(kernel)
                continue
            self._planned.append((kernel, plan))
            if self.called is None and ROWS in kernel["sizes"]:
                self.called = kernel, ROWS

    @property
    def has_any(self) -> bool:
        return bool(self._planned)

    def at(self, tokens: int, sizes: Mapping[str, int]) -> PredictedOutside:
        """``sizes``: of the model, with so many tokens."""
        found: list[RepeatedLaunch] = []
        for kernel, plan in self._planned:
            own = kernel_sizes(kernel, sizes, self._calls.where(kernel))
            launches = self._calls.launches(kernel, plan, own)
            found += [RepeatedLaunch(launch, len(kernel["nodes"])) for launch in launches]
        return PredictedOutside(tokens, tuple(found))
