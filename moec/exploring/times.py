"""Times of a model's nodes: measured where a benchmark is given, otherwise the least that a machine's limits allow."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from moec import targets
from moec.common.dtypes import DTYPES
from moec.common.errors import MoecError
from moec.common.kernel_sizes import evaluate, kernel_sizes
from moec.common.roofline import Roofline
from moec.common.work import Argument, GroupedWork, Work, parse_work, work_of
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
        return _measured(subject, subject.bench)
    kind = targets.kind_of(subject.artifact.manifest.target)
    if not isinstance(kind, ProgramKind):
        return [_estimated(kind, subject)]
    return [_predicted_on_device(subject) if kind.has_device else _predicted(subject)]


def kernels_of(subject: Subject) -> list[dict[str, Any]]:
    """List the kernels of one program: of the newest, where an artifact has several."""
    kernels = subject.description["kernels"]
    return [kernel for kernel in kernels if kernel["architecture"] == kernels[-1]["architecture"]]


def _measured(subject: Subject, bench: Mapping[str, Any]) -> list[RunTimes]:
    kernels = {kernel["name"]: kernel for kernel in kernels_of(subject)}
    try:
        return [
            RunTimes(
                ", ".join(f"{name} {' x '.join(map(str, shape))}" for name, shape in case["inputs"].items()),
                _spread((kernels[row["name"]], row["milliseconds"] * 1e3) for row in case["kernels"]),
                case["milliseconds"]["moec"]["median"] * 1e3,
            )
            for case in bench["cases"]
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise MoecError(
            f"the benchmark lacks {error}; expected what 'moec bench {subject.title} --json' printed for this artifact"
        ) from None


def _spread(rows: Iterable[tuple[Mapping[str, Any], float]]) -> dict[str, float]:
    """Divide the time of each kernel evenly among its nodes."""
    nodes: dict[str, float] = {}
    for kernel, time in rows:
        for node in kernel["nodes"]:
            nodes[node] = nodes.get(node, 0.0) + time / len(kernel["nodes"])
    return nodes


def _estimated(kind: Kind, subject: Subject) -> RunTimes:
    layers = kind.layer_estimate(subject.description)
    if layers is None:
        raise MoecError(f"{subject.artifact.manifest.target} estimates no times of layers")
    nodes, ends = ({key: seconds * 1e6 for key, seconds in each.items()} for each in (layers.nodes, layers.ends))
    return RunTimes(layers.run, nodes, limits=layers.machine, kinds=ends)


def _predicted_on_device(subject: Subject) -> RunTimes:
    kind = targets.kind_of(subject.artifact.manifest.target)
    data = kind.estimate_launches(subject.artifact, None, [1], None, subject.architecture).data
    of_function = {launch["function"]: kernel for kernel in kernels_of(subject) for launch in kernel["launches"]}
    launches = [launch for group in data["outside"] for launch in group["launches"]]
    nodes = _spread(
        (of_function[launch["function"]], launch["calls"] * launch["least_seconds"] * 1e6) for launch in launches
    )
    for group in data["layers"]:
        nodes[group["node"]] = nodes.get(group["node"], 0.0) + group["least_seconds"] * 1e6
    return RunTimes("1 token", nodes, limits=f"{data['gpu']}, published figures")


def _predicted(subject: Subject) -> RunTimes:
    if not subject.may_measure:
        raise MoecError("limits of this machine are measured by 'moec explore' and 'moec bench --json'")
    roofline = _limits_of_this_machine(subject.artifact.manifest.target, subject.artifact.manifest.threads)
    sizes = _sizes_of_a_token(subject.description["inputs"])
    rows = []
    for kernel in kernels_of(subject):
        work = _work(kernel, sizes, f"{subject.artifact.where}: kernel {kernel['name']!r}")
        if work is not None:
            seconds = roofline.seconds(work.operations or 0, work.bytes_moved, work.arithmetic)
            rows.append((kernel, kernel["calls"] * seconds * 1e6))
    return RunTimes("1 token", _spread(rows), limits=f"this machine, {roofline.threads} threads, limits measured")


@functools.cache
def _limits_of_this_machine(target: str, threads: int | None) -> Roofline:
    return targets.program_kind_of(target).measure_roofline(threads)  # type: ignore[arg-type]


def _sizes_of_a_token(inputs: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Sizes of the model's inputs where one token follows one."""
    return {size: 1 for tensor in inputs for size in tensor["shape"] if isinstance(size, str) and size.isidentifier()}


def _work(kernel: Mapping[str, Any], model: Mapping[str, int], where: str) -> Work | None:
    """Compute the work of a call by its sizes; None where these follow from computed values. A token selects experts
    evenly, and a lookup reads as much as it returns."""
    sizes = kernel_sizes(kernel, model, where)
    try:
        shapes = [[evaluate(str(size), sizes, where) for size in each["shape"]] for each in kernel["parameters"]]
    except MoecError:
        return None
    counted = parse_work(kernel["work"], where)
    arguments = [
        Argument(
            np.broadcast_to(np.zeros((), DTYPES[each["dtype"]]), shape),
            all(isinstance(size, int) for size in each["shape"]),
        )
        for each, shape in zip(kernel["parameters"], shapes, strict=True)
    ]
    if isinstance(counted, GroupedWork):
        arguments = _with_rows(arguments, kernel["attributes"]["experts"])
    if kernel["op"] == "Gather":
        most = arguments[-1].array.nbytes
        return Work(None, sum(min(argument.array.nbytes, most) for argument in arguments))
    return work_of(counted, arguments)


def _with_rows(arguments: list[Argument], experts: int) -> list[Argument]:
    """Fill in the list of blocks, (expert, first row, rows), and their number, for rows that reach as many experts as
    they can."""
    numbers = np.dtype(np.int32)
    order = next(each for each in arguments if each.array.dtype == numbers and each.array.ndim == 1)
    place = next(i for i, each in enumerate(arguments) if each.array.dtype == numbers and each.array.shape[1:] == (3,))
    rows = order.array.size
    reached = np.linspace(0, experts - 1, min(rows, experts)).astype(np.int32)
    shares = np.diff(np.linspace(0, rows, len(reached) + 1).astype(np.int32))
    blocks = np.stack([reached, np.zeros_like(reached), shares], axis=1)
    filled = [Argument(blocks, False), Argument(np.array([len(blocks)], np.int32), False)]
    return [*arguments[:place], *filled, *arguments[place + 2 :]]
