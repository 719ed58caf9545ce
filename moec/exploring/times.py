"""Times of a model's nodes: measured where a benchmark is given, otherwise the least that a machine's limits allow."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from moec import targets
from moec.common.errors import MoecError
from moec.exploring.kernel_runs import KernelRun, measured_runs, predicted_runs
from moec.exploring.subject import Subject
from moec.targets.kind import Kind, ProgramKind


@dataclasses.dataclass(frozen=True)
class RunTimes:
    """Microseconds of one run by the names of ``nodes``. Calls of a kernel that several nodes share take equal times.

    ``kinds``: of parts without a name, by their kind. ``title``: the sizes of the run. ``whole``: microseconds of the
    whole run, if they were measured. ``limits``: the machine whose limits predict the times; None for measured ones.
    """

    title: str
    nodes: Mapping[str, float]
    whole: float | None = None
    limits: str | None = None
    kinds: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def of(self, kind: str, nodes: Iterable[str]) -> float:
        """Microseconds of a part of this kind with these nodes."""
        return self.kinds.get(kind, 0.0) + sum(self.nodes.get(name, 0.0) for name in nodes)

    @property
    def is_measured(self) -> bool:
        return self.limits is None


def times_of(subject: Subject) -> list[RunTimes]:
    """Collect the times of the runs of a benchmark; of one predicted token where there is none. Raises MoecError with
    the reason where nothing is known, and for a benchmark that cannot be read."""
    if subject.bench is not None:
        runs = measured_runs(subject, subject.bench)
        return [RunTimes(run.title, _spread(run.kernels), (run.whole or 0.0) * 1e6) for run in runs]
    kind = targets.kind_of(subject.artifact.manifest.target)
    if not isinstance(kind, ProgramKind):
        return [_estimated(kind, subject)]
    first = next(predicted_runs(subject, kind))
    return [RunTimes(first.title, _spread(first.kernels), limits=f"{first.machine.title}, {first.machine.source}")]


def _spread(kernels: Iterable[KernelRun]) -> dict[str, float]:
    """Divide the time of each kernel evenly among its nodes, in microseconds."""
    nodes: dict[str, float] = {}
    for each in kernels:
        names = each.kernel["nodes"]
        for node in names:
            nodes[node] = nodes.get(node, 0.0) + each.seconds * 1e6 / len(names)
    return nodes


def _estimated(kind: Kind, subject: Subject) -> RunTimes:
    layers = kind.layer_estimate(subject.description)
    if layers is None:
        raise MoecError(f"{subject.artifact.manifest.target} estimates no times of layers")
    nodes, ends = ({key: seconds * 1e6 for key, seconds in each.items()} for each in (layers.nodes, layers.ends))
    return RunTimes(layers.run, nodes, limits=layers.machine, kinds=ends)
