"""One call of a kernel, caught while its model runs emulated: the numbers it gets, and what it makes of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from moec.errors import MoecError
from moec.runtime.artifact import Artifact
from moec.runtime.executor import Argument
from moec.runtime.model import ready
from moec.sampling import random_inputs, size_cases

_SIZES = (7, 40, 300)
"""Of dynamic dimensions."""
_BATCHES = (1, 2, 3, 4)
"""Of the first dimension, where there are several."""


@dataclasses.dataclass(frozen=True)
class CaughtTensor:
    """A parameter before and after the call."""

    name: str
    before: np.ndarray
    after: np.ndarray


def catch_call(
    artifact: Artifact, kernel: str, names: Sequence[str], architecture: str | None, least: int = 1
) -> list[CaughtTensor]:
    """The parameters, called ``names``, of the first call of a kernel that computes something. Inputs are random with a
    fixed seed; dynamic sizes are ``least``, at which the kernel is expected to, and others until it does. Raises
    MoecError where the kernel computes nothing on any."""
    model = ready(artifact, emulate=True, architecture=architecture)
    for sizes in size_cases(model.inputs, (max(least, 1), *_SIZES), _BATCHES, model.input_sizes):
        calls: list[list[np.ndarray]] = []
        results: list[list[np.ndarray]] = []
        model.watch_kernels(
            random_inputs(model.inputs, sizes, model.input_limits),
            lambda name, arguments: _keep(results, arguments, name == kernel),  # noqa: B023  # used in this iteration
            before=lambda name, arguments: _keep(calls, arguments, name == kernel),  # noqa: B023
        )
        for before, after in zip(calls, results, strict=True):
            if any(_differ(*pair) for pair in zip(before, after, strict=True)):
                return [CaughtTensor(*one) for one in zip(names, before, after, strict=True)]
    raise MoecError(
        f"{artifact.where}: kernel {kernel!r} computes nothing on random inputs with dynamic sizes of "
        f"{', '.join(map(str, (max(least, 1), *_SIZES)))}; choose another kernel"
    )


def _keep(calls: list[list[np.ndarray]], arguments: Sequence[Argument], wanted: bool) -> None:
    if wanted:
        calls.append([argument.array.copy() for argument in arguments])


def _differ(before: np.ndarray, after: np.ndarray) -> bool:
    return before.tobytes() != after.tobytes()
