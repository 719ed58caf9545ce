"""Timing of a compiled model, in turns with onnxruntime on the original where asked for."""

from __future__ import annotations

import collections
import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from moec import targets
from moec.common.errors import MoecError
from moec.common.work import Work, work_of

if TYPE_CHECKING:
    from moec.common.roofline import Roofline
    from moec.common.work import Argument
    from moec.runtime.model import CompiledModel

RIVALS = ("onnxruntime",)
_SIZES = (1, 16, 128)
_WARM_UP, _ROUNDS_AT_LEAST, _ROUNDS_AT_MOST, _SECONDS = 3, 7, 200, 2.0
_PAUSE = 0.06
"""Idle seconds before every run, because threads of the previous contestant that still spin would take cores from the
next. Those of onnxruntime spin for 40 ms."""
_PROFILED_RUNS = 5


def bench(
    compiled: CompiledModel,
    *,
    against: str | None = None,
    model_path: str | os.PathLike[str] | None = None,
    inputs: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """Time a model and its kernels.

    Returns plain data: the place of the weights, the machine's roofline, measured now, and for each case its sizes, the
    minimum and median milliseconds of each contestant, and the median milliseconds, rates and share of the roofline of
    each kernel. Contestants alternate, so that a machine that slows down slows both.

    Without ``inputs`` the cases are random inputs with 1, 16 and 128 for the dynamic sizes (1 for the first of several:
    the batch). Raises MoecError for an unknown contestant or when it lacks ``model_path``.
    """
    contestants: dict[str, Callable[[Mapping[str, np.ndarray]], Any]] = {"moec": compiled.run}
    if against is not None:
        contestants[against] = _rival(against, model_path, compiled.threads)
    cases = [dict(inputs)] if inputs is not None else default_cases(compiled)
    roofline = targets.program_kind_of(compiled.target).measure_roofline(compiled.threads)
    return {
        "threads": compiled.threads,
        "weights": dataclasses.asdict(compiled.placement),
        "roofline": roofline.as_data(),
        "cases": [_bench_case(compiled, contestants, case, roofline) for case in cases],
    }


def _rival(
    name: str, model_path: str | os.PathLike[str] | None, threads: int
) -> Callable[[Mapping[str, np.ndarray]], Any]:
    if name not in RIVALS:
        raise MoecError(f"cannot compare against {name!r}; known: {', '.join(RIVALS)}")
    if model_path is None:
        raise MoecError(f"comparing against {name} needs the original model: add --model MODEL")
    from moec.tools.reference import open_session, run_session

    session = open_session(model_path, threads, rounding_activations=True)
    return lambda inputs: run_session(session, inputs)


def default_cases(compiled: CompiledModel) -> list[dict[str, np.ndarray]]:
    """Make the inputs that :func:`bench` uses by default."""
    from moec.checking.sampling import random_inputs, size_cases

    cases = size_cases(
        compiled.inputs, _SIZES, first_sizes=(1, 1, 1), dependent=compiled.interface.sizes, guards=compiled.guards
    )
    return [random_inputs(compiled.inputs, sizes, compiled.interface.limits) for sizes in cases]


def _bench_case(
    compiled: CompiledModel,
    contestants: Mapping[str, Callable[[Mapping[str, np.ndarray]], Any]],
    inputs: Mapping[str, np.ndarray],
    roofline: Roofline,
) -> dict[str, Any]:
    seconds = alternate(contestants, inputs)
    return {
        "inputs": {name: list(value.shape) for name, value in inputs.items()},
        "milliseconds": {
            name: {"min": min(times) * 1e3, "median": statistics.median(times) * 1e3, "runs": len(times)}
            for name, times in seconds.items()
        },
        "kernels": _kernel_rows(compiled, inputs, roofline),
    }


def alternate(
    contestants: Mapping[str, Callable[[Mapping[str, np.ndarray]], Any]],
    inputs: Mapping[str, np.ndarray],
    limit: float = _SECONDS,
) -> dict[str, list[float]]:
    """Time every run of each contestant, in seconds. They take turns, at least 7 times, and then until ``limit``
    seconds for each are over."""
    for _ in range(_WARM_UP):
        for run in contestants.values():
            run(inputs)
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    end = time.perf_counter() + limit * len(contestants)
    for count in range(_ROUNDS_AT_MOST):
        if count >= _ROUNDS_AT_LEAST and time.perf_counter() > end:
            break
        for name, run in contestants.items():
            time.sleep(_PAUSE)
            start = time.perf_counter()
            run(inputs)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def _kernel_rows(compiled: CompiledModel, inputs: Mapping[str, np.ndarray], roofline: Roofline) -> list[dict[str, Any]]:
    """Describe each kernel: calls in one run, the median over runs of its total milliseconds, 10**9 operations and
    bytes per second, and share of the roofline; slowest first. A share above 1 means that data came from caches."""
    times = _kernel_times(compiled, inputs)
    rows = []
    for name, work in _kernel_work(compiled, inputs).items():
        operations, moved, arithmetic = dataclasses.astuple(work)
        calls, seconds = times[name]
        least = roofline.seconds(operations or 0, moved, arithmetic)
        rows.append(
            {
                "name": name,
                "calls": calls,
                "milliseconds": seconds * 1e3,
                "gop_per_s": None if operations is None else operations / seconds / 1e9,
                "gb_per_s": moved / seconds / 1e9,
                "share_of_roofline": least / seconds,
            }
        )
    return sorted(rows, key=lambda row: -row["milliseconds"])


def _kernel_times(compiled: CompiledModel, inputs: Mapping[str, np.ndarray]) -> dict[str, tuple[int, float]]:
    """Count the calls of each kernel in one run, and take the median over runs of their total seconds."""
    totals: dict[str, list[float]] = collections.defaultdict(list)
    calls: collections.Counter[str] = collections.Counter()
    for _ in range(_PROFILED_RUNS):
        run: collections.defaultdict[str, float] = collections.defaultdict(float)
        calls.clear()
        for name, seconds in compiled.probe.time_kernels(inputs):
            run[name] += seconds
            calls[name] += 1
        for name, total in run.items():
            totals[name].append(total)
    return {name: (calls[name], statistics.median(times)) for name, times in totals.items()}


def _kernel_work(compiled: CompiledModel, inputs: Mapping[str, np.ndarray]) -> dict[str, Work]:
    """Sum up the work of each kernel over its calls in one run."""
    work: dict[str, Work] = {}

    def watch(name: str, arguments: list[Argument]) -> None:
        if name not in compiled.kernels:  # kernels that are not listed compute sizes
            return
        call = work_of(compiled.kernels[name].work, arguments)
        work[name] = work[name] + call if name in work else call

    compiled.probe.watch_kernels(inputs, watch)
    return work
