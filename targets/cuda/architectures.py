"""The GPUs that code is generated for, by architecture, and what a block of threads may have there."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

WARP = 32
"""Threads of a warp."""
FP8 = "float8_e4m3fn"
"""The type of numbers of 8 bits that tensor cores multiply."""


@dataclasses.dataclass(frozen=True)
class BlockLimits:
    """CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"; of Blackwell, NVIDIA's libcu++
    (``arch_traits.h``)."""

    shared_bytes: int
    """Static arrays and what is asked for at the launch, where the kernel opted in to more than 48 KiB."""


LIMITS = {
    "sm_80": BlockLimits(163 << 10),
    "sm_86": BlockLimits(99 << 10),
    "sm_89": BlockLimits(99 << 10),
    "sm_90a": BlockLimits(227 << 10),
    "sm_100": BlockLimits(227 << 10),
    "sm_120": BlockLimits(99 << 10),
}
"""From the oldest to the newest. Kernels that are not for one of them alone stay within the least of all: a newer GPU
may have less than the one that its code was made for."""


def is_for_newer_ones(architecture: str) -> bool:
    """Whether newer GPUs can run what is made for it: all but what has a GPU's own instructions (``sm_90a``)."""
    return not architecture.endswith("a")


def multiplies_fp8(architecture: str) -> bool:
    """Whether its tensor cores multiply floats of 8 bits (PTX ISA, ``mma``: e4m3 from sm_89 on)."""
    names = list(LIMITS)
    return architecture in names[names.index("sm_89") :]


def newest_that_runs(architectures: Iterable[str], capability: str) -> str | None:
    """The newest of ``architectures`` whose code a GPU of compute capability ``capability`` (``9.0``) runs: one that is
    not newer, and one of its own instructions only on exactly that GPU. Of its own major version it runs the machine
    code; of an older one the driver makes its own of the PTX (CUDA C++ Programming Guide, "Just-in-Time
    Compilation")."""
    gpu = tuple(map(int, capability.split(".")))
    known = {name: re.fullmatch(r"sm_(\d+)(\d)a?", name) for name in architectures}
    versions = {name: (int(match[1]), int(match[2])) for name, match in known.items() if match is not None}
    fitting = [
        (version, not is_for_newer_ones(name), name)
        for name, version in versions.items()
        if version == gpu or (version < gpu and is_for_newer_ones(name))
    ]
    return max(fitting)[2] if fitting else None
