"""Targets by name. A name is a kind, and after a colon what that kind lets one choose: ``cpu``, ``cpu:avx2``,
``cuda:sm_90a``."""

from __future__ import annotations

from collections.abc import Callable

from moec.errors import MoecError
from moec.targets.base import Target


def _cpu(name: str) -> Target:
    from moec.targets.cpu.target import CpuTarget

    return CpuTarget.create(name)


def _cuda(name: str) -> Target:
    from moec.targets.cuda.target import CudaTarget

    return CudaTarget.create(name)


TARGETS: dict[str, Callable[[str], Target]] = {"cpu": _cpu, "cuda": _cuda}
"""Makers of targets by kind; each is given the whole name."""


def get(name: str) -> Target:
    """The target of that name. Raises MoecError listing the known kinds, UnsupportedError for an unknown variant."""
    kind = name.partition(":")[0]
    if kind not in TARGETS:
        variants = "with a variant such as cpu:avx2 or cuda:sm_90a"
        raise MoecError(f"target '{name}' is not known; use one of {', '.join(TARGETS)}, {variants}")
    return TARGETS[kind](name)
