"""Predictions for launches outside of layers of experts: mainly dense products and attention."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from moec.runtime.manifest import ProgramEntry
from moec.targets.cuda.launch_model.kernel_calls import KernelCalls, PredictedLaunch
from moec.targets.cuda.launch_model.plans import ROWS, LaunchPlan, MemoryBoundPlan, parse_plan
from moec.targets.cuda.launch_model.sizes import ModelSizes, kernel_sizes


@dataclasses.dataclass(frozen=True)
class RepeatedLaunch:
    """A launch, and the number of times that a run makes it."""

    launch: PredictedLaunch
    calls: int

    @property
    def seconds(self) -> float:
        return self.calls * self.launch.prediction.seconds


@dataclasses.dataclass(frozen=True)
class PredictedOutside:
    """The launches outside of layers at some number of tokens. Launches that are not predicted may come in between."""

    tokens: int
    launches: tuple[RepeatedLaunch, ...]

    @property
    def seconds(self) -> float:
        return sum(launch.seconds for launch in self.launches)

    @property
    def operations(self) -> float:
        return sum(repeated.calls * repeated.launch.prediction.operations for repeated in self.launches)


class OutsideKernels:
    """The kernels of a program that are launched for nodes other than ``layers``. ``others``: the records of kernels
    that cannot be predicted, because they have no plan, or sizes that are computed at run time."""

    def __init__(self, program: ProgramEntry, layers: set[str], calls: KernelCalls, model: ModelSizes) -> None:
        self._calls = calls
        self._planned, self.others = [], []
        self.called: tuple[Mapping[str, Any], str] | None = None
        """A product's kernel, and the name of its size that is the number of rows; None if there is no product."""
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
        """The launches at a number of tokens. ``sizes``: those of the model at that number."""
        repeated: list[RepeatedLaunch] = []
        for kernel, plan in self._planned:
            own = kernel_sizes(kernel, sizes, self._calls.where(kernel))
            launches = self._calls.launches(kernel, plan, own)
            repeated += [RepeatedLaunch(launch, kernel["calls"]) for launch in launches]
        return PredictedOutside(tokens, tuple(repeated))


def _sizes_named(kernel: Mapping[str, Any], plan: LaunchPlan) -> Iterator[str]:
    """The expressions that a prediction evaluates: those of launches, and of tensors' shapes; if the plan limits the
    numbers that move, that limit instead of the shape."""
    for launch in kernel["launches"]:
        yield from (*launch["grid"], *launch["block"], launch["shared_bytes"])
    limits = {}
    if isinstance(plan, MemoryBoundPlan):
        limits = dict(zip((*plan.read, *plan.written), (*plan.most_read, *plan.most_written), strict=False))
    else:
        yield from kernel["sizes"]
    for parameter in kernel["parameters"]:
        limit = limits.get(parameter["name"], "")
        yield from [limit] if limit else map(str, parameter["shape"])
