"""Capture of one call of a kernel while its model runs emulated: the kernel's parameters before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from moec.artifacts.loading import ready
from moec.checking.sampling import random_inputs, size_cases
from moec.common.errors import MoecError
from moec.common.work import Argument
from moec.runtime.artifact import Artifact
from moec.runtime.load_options import LoadOptions
from moec.runtime.model import CompiledModel
from moec.targets.kind import CaughtTensor

Arrays = list[np.ndarray]
_SIZES = (7, 40, 300)
"""Sizes of dynamic dimensions to try."""
_BATCHES = (1, 2, 3, 4)
"""Sizes of the first dimension to try, where there are several."""


def catch_call(
    artifact: Artifact, kernel: str, names: Sequence[str], architecture: str | None, least: int = 1
) -> list[CaughtTensor]:
    """Capture the parameters, called ``names``, of the first call of a kernel that changes any of them.

    Inputs are random with a fixed seed. Dynamic sizes begin at ``least``, at which the kernel is expected to change
    something, and others are tried until it does. Raises MoecError where it changes nothing at any size.
    """
    model = ready(artifact, LoadOptions(emulate=True, architecture=architecture))
    tried = (max(least, 1), *_SIZES)
    for sizes in size_cases(model.inputs, tried, _BATCHES, model.interface.sizes, model.guards):
        # Memory of an earlier run may hold the results already, so a run with another seed comes between.
        for seed in (0, 1, 0):
            for before, after in _calls(
                model, kernel, random_inputs(model.inputs, sizes, model.interface.limits, seed)
            ):
                changed = any(array.tobytes() != other.tobytes() for array, other in zip(before, after, strict=True))
                if changed and seed == 0:
                    return [CaughtTensor(*tensor) for tensor in zip(names, before, after, strict=True)]
    raise MoecError(
        f"{artifact.where}: kernel {kernel!r} computes nothing on random inputs with dynamic sizes of "
        f"{', '.join(map(str, tried))}; choose another kernel"
    )


def _calls(model: CompiledModel, kernel: str, inputs: Mapping[str, np.ndarray]) -> list[tuple[Arrays, Arrays]]:
    """Capture the parameters before and after each call of a kernel in one run."""
    calls: list[tuple[Arrays, Arrays]] = []
    started: Arrays = []

    def before(name: str, arguments: list[Argument]) -> None:
        if name == kernel:
            started[:] = [argument.array.copy() for argument in arguments]

    def after(name: str, arguments: list[Argument]) -> None:
        if name == kernel:
            calls.append((list(started), [argument.array.copy() for argument in arguments]))

    model.probe.watch_kernels(inputs, after, before)
    return calls
