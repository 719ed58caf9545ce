"""Measurement of the crossovers of an artifact's kernels on this machine: the numbers of rows from which the second way
is faster.

For growing numbers of tokens every kernel is timed both ways, in turns, so that a machine that slows down slows both.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from moec import targets
from moec.common.arguments import check_kind
from moec.common.crossovers import Point, Tuned
from moec.common.errors import MoecError
from moec.common.guards import holds, parse_guard
from moec.common.progress import Progress, silent
from moec.runtime.tuning import ALWAYS, NEVER, store_tuned
from moec.tools.crossovers import FIXED_SIZES, crossover_of

if TYPE_CHECKING:
    from moec.runtime.model import CompiledModel

TOKENS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192)
_ROUNDS = 5


def tune(compiled: CompiledModel, progress: Progress = silent) -> CompiledModel:
    """Measure all crossovers, keep them for artifacts loaded later on this machine, and return the model with them. The
    model itself keeps those it had, and is returned where it has none. Raises what :func:`measure` does."""
    from moec.runtime.model import CompiledModel

    check_kind("model", compiled, CompiledModel, "a CompiledModel, as moec.load returns it")
    return compiled.reloaded() if measure(compiled, progress) else compiled


def measure(compiled: CompiledModel, progress: Progress = silent) -> list[Tuned]:
    """Measure all crossovers, and keep them for artifacts loaded later on this machine.

    Returns an empty list for a model without kernels that have one. Raises MoecError for a model without dynamic sizes,
    and when the file of measured values cannot be written; UnsupportedError for a model whose GPU is emulated.
    """
    before = compiled.probe.crossovers
    try:
        tuned = targets.program_kind_of(compiled.target).tune(compiled, progress)
    finally:
        compiled.probe.set_crossovers(before)
    if tuned:
        store_tuned({crossover.name: crossover.rows for crossover in tuned}, compiled.gpu)
    return tuned


def measure_kernels(compiled: CompiledModel, progress: Callable[[str], None]) -> list[Tuned]:
    """Do the work of :func:`measure` for a model on the processor. The model's crossovers are arbitrary afterwards."""
    before = compiled.probe.crossovers
    readers: dict[str, list[str]] = {name: [] for name in before}
    for kernel in compiled.kernels.values():
        for name in kernel.crossovers:
            readers[name].append(kernel.name)
    if not before:
        return []
    points: dict[str, list[Point]] = collections.defaultdict(list)
    for tokens, inputs in _cases(compiled):
        progress(f"timing with {tokens} tokens")
        first, second = _times_both_ways(compiled, inputs)
        for name, kernels in readers.items():
            rows = _rows(compiled, kernels, tokens)
            seconds = [sum(times.get(kernel, 0.0) for kernel in kernels) for times in (first, second)]
            points[name].append(Point(rows, *seconds))
    return [Tuned(name, readers[name], before[name], crossover_of(points[name]), points[name]) for name in before]


def _cases(compiled: CompiledModel) -> list[tuple[int, dict[str, np.ndarray]]]:
    from moec.checking.sampling import random_inputs, size_cases

    cases = size_cases(compiled.inputs, TOKENS, first_sizes=(1,) * len(TOKENS), dependent=compiled.interface.sizes)
    if len(cases) == 1:
        raise MoecError(FIXED_SIZES)
    guards = [parse_guard(guard) for guard in compiled.guards]
    return [
        (tokens, random_inputs(compiled.inputs, sizes, compiled.interface.limits))
        for tokens, sizes in zip(TOKENS, cases, strict=True)
        if all(holds(guard, sizes) for guard in guards)
    ]


def _times_both_ways(compiled: CompiledModel, inputs: Mapping[str, np.ndarray]) -> list[dict[str, float]]:
    """Least seconds of every kernel, over all its calls: the first way, and the second."""
    best: list[dict[str, float]] = [{}, {}]
    for _ in range(_ROUNDS):
        for position, crossover in enumerate((NEVER, ALWAYS)):
            compiled.probe.set_crossovers(dict.fromkeys(compiled.probe.crossovers, crossover))
            totals: dict[str, float] = collections.defaultdict(float)
            for name, seconds in compiled.probe.time_kernels(inputs):
                totals[name] += seconds
            for name, total in totals.items():
                best[position][name] = min(total, best[position].get(name, math.inf))
    return best


def _rows(compiled: CompiledModel, kernels: list[str], tokens: int) -> float:
    """Average number of rows of an expert that has any, for a number of tokens. A dense product is one expert."""
    experts = compiled.kernels[kernels[0]].attributes["experts"]
    blocks = [block for block in compiled.describe()["moe_blocks"] if block["num_experts"] == experts]
    share = max((block["top_k"] or 1 for block in blocks), default=1) / experts
    return tokens * share / (1 - (1 - share) ** tokens)
