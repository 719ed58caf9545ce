"""Section ``roofline``: machines with their limits, the kernels of runs on them, and advice."""

from __future__ import annotations

import dataclasses
from typing import Any

from moec import targets
from moec.common.errors import MoecError
from moec.exploring.advice import advice_for, is_generic, share_of_roof
from moec.exploring.kernel_runs import KernelRun, MachineLimits, Run, measured_runs, predicted_runs
from moec.exploring.subject import Subject
from moec.targets.kind import ProgramKind


def roofline(subject: Subject) -> dict[str, Any] | None:
    """Describe the kernels of each run against the limits of its machine, as plain data.

    ``machines``: each with its ``bytes_per_second`` of memory, and ``roofs``: the ``operations_per_second`` of kinds of
    ``arithmetic``. ``runs``: each on the ``machine`` of that number, with its ``kernels``, the slowest first, the
    names of kernels ``not_predicted``, and its ``advice``; an ``exact`` one leaves results as they are. ``faults``:
    why there are no measured or no predicted runs. Returns None for a design that is not a program.
    """
    kind = targets.kind_of(subject.artifact.manifest.target)
    if not isinstance(kind, ProgramKind):
        return None
    runs, faults = _runs(subject, kind)
    machines = list(dict.fromkeys(run.machine.title for run in runs))
    of_title = {run.machine.title: run.machine for run in runs}
    return {
        "machines": [_machine(of_title[title]) for title in machines],
        "runs": [_run(run, machines.index(run.machine.title)) for run in runs],
        "faults": faults,
    }


def _runs(subject: Subject, kind: ProgramKind) -> tuple[list[Run], list[str]]:
    """Collect measured runs, if there are any, and predicted ones for machines that need not be measured for them."""
    faults, runs = [], []
    if subject.bench is not None:
        try:
            runs = measured_runs(subject, subject.bench)
        except MoecError as error:
            faults.append(str(error))
    if not runs or kind.has_device:
        try:
            runs += predicted_runs(subject, kind)
        except MoecError as error:
            faults.append(str(error))
    return runs, faults


def _machine(machine: MachineLimits) -> dict[str, Any]:
    best: dict[str, float] = {}
    for peak in machine.roofline.peaks:
        best[peak.arithmetic] = max(best.get(peak.arithmetic, 0.0), peak.operations_per_second)
    of_rate: dict[float, list[str]] = {}
    for arithmetic, rate in best.items():
        of_rate.setdefault(rate, []).append(arithmetic)
    return {
        "title": machine.title,
        "source": machine.source,
        "bytes_per_second": machine.roofline.bandwidth,
        "roofs": [{"arithmetic": names, "operations_per_second": rate} for rate, names in sorted(of_rate.items())],
    }


def _run(run: Run, machine: int) -> dict[str, Any]:
    return {
        "title": run.title,
        "machine": machine,
        "measured": run.whole is not None,
        "microseconds": None if run.whole is None else run.whole * 1e6,
        "kernel_microseconds": run.seconds * 1e6,
        "kernels": [_kernel(run, row) for row in sorted(run.kernels, key=lambda row: -row.seconds)],
        "not_predicted": list(run.unknown),
        "advice": [dataclasses.asdict(advice) for advice in advice_for(run)],
    }


def _kernel(run: Run, row: KernelRun) -> dict[str, Any]:
    operations, moved = row.work.operations or None, row.work.bytes_moved
    return {
        "name": row.name,
        "kind": "product" if row.reads is not None else "other" if operations is None else "counted",
        "generic": is_generic(row.kernel),
        "calls": row.calls,
        "microseconds": row.seconds * 1e6,
        "share_of_time": row.seconds / run.seconds if run.seconds else 0.0,
        "operations": operations,
        "bytes": moved,
        "weight_bytes": None if row.reads is None else row.reads.bytes,
        "arithmetic": row.work.arithmetic,
        "operations_per_byte": operations / moved if operations and moved else None,
        "operations_per_second": operations / row.seconds if operations and row.seconds else None,
        "bytes_per_second": moved / row.seconds if row.seconds else None,
        "share_of_roof": share_of_roof(run, row),
        "limit": "memory" if run.least(row.work) <= moved / run.machine.roofline.bandwidth else "arithmetic",
    }
