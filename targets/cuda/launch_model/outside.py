"""Predictions for what a program launches outside of its layers of experts: dense products and attention above all."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from moec.runtime.manifest import ProgramEntry
from moec.targets.cuda.launch_model.kernel_calls import KernelCalls, PredictedLaunch
from moec.targets.cuda.launch_model.plans import ROWS, LaunchPlan, StreamPlan, parse_plan
from moec.targets.cuda.launch_model.sizes import ModelSizes, kernel_sizes


@dataclasses.dataclass(frozen=True)
class RepeatedLaunch:
    """A launch that a run makes so often."""

    launch: PredictedLaunch
    calls: int

    @property
    def seconds(self) -> float:
        return self.calls * self.launch.prediction.seconds


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
        return sum(one.calls * one.launch.prediction.operations for one in self.launches)


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
            if plan is None or not model.tell(kernel, _sizes_named(kernel, plan), where):
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
            found += [RepeatedLaunch(launch, kernel["calls"]) for launch in launches]
        return PredictedOutside(tokens, tuple(found))


def _sizes_named(kernel: Mapping[str, Any], plan: LaunchPlan) -> Iterator[str]:
    """Texts of what a prediction evaluates: of launches, and of tensors; where a plan limits what it moves, that."""
    for launch in kernel["launches"]:
        yield from (*launch["grid"], *launch["block"], launch["shared_bytes"])
    limits = {}
    if isinstance(plan, StreamPlan):
        limits = dict(zip((*plan.read, *plan.written), (*plan.most_read, *plan.most_written), strict=False))
    else:
        yield from kernel["sizes"]
    for parameter in kernel["parameters"]:
        limit = limits.get(parameter["name"], "")
        yield from [limit] if limit else map(str, parameter["shape"])
