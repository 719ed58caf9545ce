"""Measurement of the crossovers of a model on this machine's GPU: the numbers of tokens from which the next way is
faster.

Around the estimate of each crossover the whole model runs both ways, in turns, launched kernel by kernel. One way may
take more launches than another, and timing single kernels would not show their cost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from moec.common.crossovers import Point, Tuned
from moec.common.errors import MoecError, UnsupportedError
from moec.tools.crossovers import FIXED_SIZES, crossover_of

if TYPE_CHECKING:
    from moec.runtime.model import CompiledModel

_SHARES = (0.25, 0.5, 0.75, 1, 1.5, 2, 4)
"""Numbers of tokens to measure, as shares of the crossover so far."""
_LENGTH = 32
"""Most tokens of a sequence."""
_ROUNDS = 5


def measure_on_gpu(compiled: CompiledModel, progress: Callable[[str], None]) -> list[Tuned]:
    """Do the work of :func:`moec.tools.tune.measure` for a model on a GPU. Crossovers are measured in order: those
    before have their new values, those after their old ones."""
    if compiled.gpu is None:
        raise UnsupportedError("the model runs emulated; expected one that was loaded on a GPU")
    kernels = compiled.describe()["kernels"]
    tuned = []
    for name, rows in compiled.probe.crossovers.items():
        readers = [kernel for kernel in kernels if name in kernel["crossovers"]]
        progress(f"timing both sides of {name}")
        points = _points(compiled, name, rows, readers)
        # Nothing is known about numbers of tokens beyond those measured.
        least, most = int(points[0].rows), int(points[-1].rows)
        measured = min(max(crossover_of(points), least), most + 1)
        tuned.append(Tuned(name, [kernel["name"] for kernel in readers], rows, measured, points))
        compiled.probe.set_crossovers({name: measured})
    return tuned


def _points(compiled: CompiledModel, name: str, rows: int, readers: list[dict[str, Any]]) -> list[Point]:
    """Time the model on both sides of a crossover, for growing numbers of tokens. Raises MoecError where the number of
    tokens is the same for all sizes of the model's inputs."""
    counts = sorted({max(1, round(share * rows)) for share in _SHARES})
    points = {}
    for inputs in (_inputs(compiled, tokens) for tokens in counts):
        tokens = _tokens(compiled, inputs, readers)
        points[tokens] = Point(tokens, *_times_both_ways(compiled, name, tokens, inputs))
    if len(points) == 1:
        raise MoecError(
            f"the number of tokens that is compared with {name!r} is {min(points)} for all sizes of the model's "
            "inputs; expected one that grows with these"
        )
    return [points[tokens] for tokens in sorted(points)]


def _inputs(compiled: CompiledModel, tokens: int) -> dict[str, np.ndarray]:
    """Make random inputs with about so many tokens, as many short sequences where there is a batch, because a model may
    have few positions. Raises MoecError for a model without dynamic sizes."""
    from moec.checking.sampling import random_inputs, size_cases

    batch, dependent = math.ceil(tokens / _LENGTH), compiled.interface.sizes
    (sizes,) = size_cases(
        compiled.inputs, [math.ceil(tokens / batch)], [batch], compiled.interface.sizes, compiled.guards
    )
    free = sizes.keys() - dependent.keys()
    if not free:
        raise MoecError(FIXED_SIZES)
    if len(free) == 1:
        (sizes,) = size_cases(compiled.inputs, [tokens], [tokens], dependent, compiled.guards)
    return random_inputs(compiled.inputs, sizes, compiled.interface.limits)


def _tokens(compiled: CompiledModel, inputs: Mapping[str, Any], readers: list[dict[str, Any]]) -> int:
    """Find the number that the host compares with a crossover in a run on these inputs."""
    by_name = {kernel["name"]: kernel for kernel in readers}
    for name, shapes in compiled.probe.shapes_of_calls(inputs):
        if name not in by_name:
            continue
        size = by_name[name]["launches"][0]["only_if"]["size"]
        for parameter, shape in zip(by_name[name]["parameters"], shapes, strict=True):
            if size in parameter["shape"]:
                return shape[parameter["shape"].index(size)]
    raise MoecError(f"no call of {', '.join(by_name)} shows the number of tokens; compile the model again")


def _times_both_ways(compiled: CompiledModel, name: str, tokens: int, inputs: Mapping[str, Any]) -> tuple[float, float]:
    """Least seconds of the model with the crossover just above ``tokens``, and just at it."""
    best = [math.inf, math.inf]
    for _ in range(_ROUNDS):
        for side, crossover in enumerate((tokens + 1, tokens)):
            compiled.probe.set_crossovers({name: crossover})
            best[side] = min(best[side], compiled.probe.time_run(inputs))
    return best[0], best[1]
