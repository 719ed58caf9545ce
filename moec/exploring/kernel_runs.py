"""Kernels in one run of a model: measured by a benchmark, or the least times that a machine's limits allow."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from moec import targets
from moec.checking.sampling import size_cases
from moec.common.errors import MoecError
from moec.common.guards import size_names
from moec.common.roofline import Roofline
from moec.common.weight_reads import WeightReads
from moec.common.work import Work
from moec.exploring.kernel_work import call_work
from moec.exploring.subject import Subject
from moec.runtime.manifest import Manifest
from moec.targets.kind import ProgramKind

TOKENS = (1, 256)
"""Numbers of tokens of the runs that are predicted: a step of decoding, and a prompt."""


@dataclasses.dataclass(frozen=True)
class MachineLimits:
    """A machine with its limits. ``source``: says where these are from. ``warps``: those that a multiprocessor of a GPU
    holds at most, where launches are known."""

    title: str
    source: str
    roofline: Roofline
    warps: int | None = None


@dataclasses.dataclass(frozen=True)
class KernelRun:
    """All calls of a ``kernel``, its record in the manifest, in one run. ``reads``: the weights of a product;
    ``launches``: those on a GPU, as ``moec inspect --launches --json`` prints them."""

    kernel: Mapping[str, Any]
    calls: int
    seconds: float
    work: Work
    reads: WeightReads | None = None
    launches: tuple[Mapping[str, Any], ...] = ()

    @property
    def name(self) -> str:
        return self.kernel["name"]


@dataclasses.dataclass(frozen=True)
class Run:
    """One run. ``title``: its sizes; ``whole``: measured seconds of the whole run, None for a predicted one;
    ``unknown``: names of kernels whose sizes are computed at run time, which are not predicted."""

    title: str
    machine: MachineLimits
    kernels: tuple[KernelRun, ...]
    whole: float | None = None
    unknown: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """Seconds of all kernels."""
        return sum(each.seconds for each in self.kernels)

    def least(self, work: Work) -> float:
        """Least seconds of some work on the machine."""
        return self.machine.roofline.seconds(work.operations or 0, work.bytes_moved, work.arithmetic)


def kernels_of(subject: Subject) -> list[dict[str, Any]]:
    """List the kernels of one program: of the newest, where an artifact has several."""
    kernels = subject.description["kernels"]
    return [kernel for kernel in kernels if kernel["architecture"] == kernels[-1]["architecture"]]


def measured_runs(subject: Subject, bench: Mapping[str, Any]) -> list[Run]:
    """Read the runs of a benchmark. Raises MoecError for one of another model, or of another form."""
    try:
        roofline = Roofline.from_data(bench["roofline"])
        machine = MachineLimits("Machine of the benchmark", f"measured, {roofline.threads} threads", roofline)
        return [_measured(subject, machine, case) for case in bench["cases"]]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise MoecError(
            f"the benchmark lacks {error}; expected what 'moec bench {subject.title} --json' printed for this artifact"
        ) from None


def _measured(subject: Subject, machine: MachineLimits, case: Mapping[str, Any]) -> Run:
    specs = {spec["name"]: spec["shape"] for spec in subject.description["inputs"]}
    sizes = {
        size: actual
        for name, shape in case["inputs"].items()
        for size, actual in zip(specs[name], shape, strict=True)
        if isinstance(size, str) and size.isidentifier()
    }
    kernels = {kernel["name"]: kernel for kernel in kernels_of(subject)}
    rows = tuple(_measured_kernel(subject, kernels[row["name"]], row, sizes) for row in case["kernels"])
    return Run(_title(case["inputs"]), machine, rows, _number(case["milliseconds"]["moec"]["median"]) / 1e3)


def _measured_kernel(
    subject: Subject, kernel: Mapping[str, Any], row: Mapping[str, Any], sizes: Mapping[str, int]
) -> KernelRun:
    """Read one row of a benchmark. Operations that are not in it, as on a GPU, follow from the sizes of the run."""
    calls, seconds = int(row["calls"]), _number(row["milliseconds"]) / 1e3
    call = call_work(kernel, sizes, f"{subject.artifact.where}: kernel {kernel['name']!r}")
    work = Work(
        None, round(_number(row["gb_per_s"]) * seconds * 1e9), (kernel["work"] or {}).get("arithmetic", "float32")
    )
    if row["gop_per_s"] is not None:
        work = dataclasses.replace(work, operations=round(_number(row["gop_per_s"]) * seconds * 1e9))
    elif call is not None and call.work.operations:
        work = _times(call.work, calls)
    reads = None if call is None or call.reads is None else call.reads.times(calls)
    return KernelRun(kernel, calls, seconds, work, reads)


def _number(value: Any) -> float:
    if not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise TypeError(f"a number in place of {str(value)[:40]!r}")
    return float(value)


def _title(shapes: Mapping[str, Sequence[Any]]) -> str:
    """Name the sizes of a run by the first input of each shape."""
    first: dict[tuple[Any, ...], str] = {}
    for name, shape in shapes.items():
        first.setdefault(tuple(shape), name)
    return ", ".join(f"{name} {' x '.join(map(str, shape))}" for shape, name in first.items())


def predicted_runs(subject: Subject, kind: ProgramKind) -> Iterator[Run]:
    """Predict runs of :data:`TOKENS` from limits: of this machine, or of each known GPU that runs the artifact; the
    first are of the machine that it is for. Raises MoecError with the reason where nothing is known."""
    yield from _predicted_on_devices(subject, kind) if kind.has_device else _predicted(subject)


def predicted_run(subject: Subject, kind: ProgramKind, tokens: int, machine: str | None = None) -> Run:
    """Predict one run of a prompt of ``tokens`` tokens, on this machine or on the known ``machine`` of a device; by
    default that of the newest architecture. Raises MoecError where there is no such run."""
    if kind.has_device:
        data = kind.estimate_launches(subject.artifact, machine, [tokens], None, subject.architecture).data
        return _estimated(subject, data, tokens)
    if machine is not None:
        raise MoecError(f"{subject.artifact.where}: is for {kind.name}, which runs on this machine; leave out --gpu")
    manifest = subject.artifact.manifest
    (sizes,) = size_cases(manifest.inputs, (tokens,), (1,), manifest.input_sizes, manifest.guards)
    if tokens not in sizes.values():
        raise MoecError(
            f"{subject.artifact.where}: takes no {_tokens(tokens)} in one run; expected a model of any number"
        )
    return _predicted_run(subject, _this_machine(subject), _predicted_title(manifest, tokens, sizes), sizes)


def _predicted(subject: Subject) -> Iterator[Run]:
    if not subject.may_measure:
        raise MoecError("limits of this machine are measured by 'moec explore' and 'moec bench --json'")
    manifest, machine = subject.artifact.manifest, _this_machine(subject)
    cases = size_cases(manifest.inputs, TOKENS, (1, 1), manifest.input_sizes, manifest.guards)
    for tokens, sizes in zip(TOKENS, cases, strict=False):
        yield _predicted_run(subject, machine, _predicted_title(manifest, tokens, sizes), sizes)


def _this_machine(subject: Subject) -> MachineLimits:
    roofline = limits_of_this_machine(subject.artifact.manifest.target, subject.artifact.manifest.threads)
    return MachineLimits("This machine", f"{roofline.threads} threads, limits measured", roofline)


def _predicted_title(manifest: Manifest, tokens: int, sizes: Mapping[str, int]) -> str:
    if not sizes:
        return "fixed sizes"
    if manifest.guards:  # which may allow other sizes only
        return ", ".join(f"{name} {size}" for name, size in sizes.items())
    sums = (size_names(size) for size in manifest.input_sizes.values() if "+" in size)
    past = max((sizes[names[0]] for names in sums if names[0] in sizes), default=0)
    return f"{_tokens(tokens)} after {past}" if past else _tokens(tokens)


def _tokens(count: int) -> str:
    return f"{count} token{'' if count == 1 else 's'}"


@functools.cache
def limits_of_this_machine(target: str, threads: int | None) -> Roofline:
    return targets.program_kind_of(target).measure_roofline(threads)  # type: ignore[arg-type]


def _predicted_run(subject: Subject, machine: MachineLimits, title: str, sizes: Mapping[str, int]) -> Run:
    run = Run(title, machine, ())
    rows, unknown = [], []
    for kernel in kernels_of(subject):
        call = call_work(kernel, sizes, f"{subject.artifact.where}: kernel {kernel['name']!r}")
        if call is None:
            unknown.append(kernel["name"])
            continue
        calls = kernel["calls"]
        reads = None if call.reads is None else call.reads.times(calls)
        rows.append(KernelRun(kernel, calls, calls * run.least(call.work), _times(call.work, calls), reads))
    return dataclasses.replace(run, kernels=tuple(rows), unknown=tuple(unknown))


def _times(work: Work, calls: int) -> Work:
    operations = None if work.operations is None else work.operations * calls
    return Work(operations, work.bytes_moved * calls, work.arithmetic)


def _predicted_on_devices(subject: Subject, kind: ProgramKind) -> Iterator[Run]:
    """Predict for the machine that the program is for, then for all other known ones that run it. Raises MoecError with
    the first reason where there is none."""
    seen: set[tuple[str, int]] = set()
    reasons = []
    for name, tokens in itertools.product((None, *kind.machines), TOKENS):
        try:
            data = kind.estimate_launches(subject.artifact, name, [tokens], None, subject.architecture).data
        except MoecError as error:  # no code for this machine, no run of so many tokens, or a block that does not fit
            reasons.append(error)
            continue
        if (data["gpu"], tokens) not in seen:
            seen.add((data["gpu"], tokens))
            yield _estimated(subject, data, tokens)
    if not seen:
        raise reasons[0]


def _estimated(subject: Subject, data: Mapping[str, Any], tokens: int) -> Run:
    machine = MachineLimits(data["gpu"], "published figures", Roofline.from_data(data["roofline"]), data["warps"])
    records = {kernel["name"]: kernel for kernel in subject.description["kernels"]}
    launches: dict[str, list[Mapping[str, Any]]] = {}
    for group in (*data["outside"], *data["layers"]):
        for launch in group["launches"]:
            launches.setdefault(launch["kernel"], []).append(launch)
    rows = tuple(_launched(records[name], group) for name, group in launches.items())
    unknown = tuple(each["kernel"] for each in data["not_estimated"])
    return Run(_tokens(tokens), machine, rows, None, unknown)


def _launched(kernel: Mapping[str, Any], launches: Sequence[Mapping[str, Any]]) -> KernelRun:
    calls = sum(launch["calls"] for launch in launches)
    work = Work(
        sum(launch["calls"] * launch["operations"] for launch in launches),
        sum(launch["calls"] * launch["bytes_moved"] for launch in launches),
        launches[0]["arithmetic"],
    )
    reads = [WeightReads(**launch["weights"]).times(launch["calls"]) for launch in launches if launch["weights"]]
    total = (
        WeightReads(sum(each.count for each in reads), sum(each.bytes for each in reads), reads[0].inner)
        if reads
        else None
    )
    seconds = sum(launch["calls"] * launch["least_seconds"] for launch in launches)
    return KernelRun(kernel, calls, seconds, work, total, tuple(launches))
