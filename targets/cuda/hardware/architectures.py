"""The GPU architectures that code is generated for, and the limits of a block of threads on each."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable


@dataclasses.dataclass(frozen=True)
class BlockLimits:
    """The limits of a block of threads. Sources: CUDA C++ Programming Guide, "Technical Specifications per Compute
    Capability"; for Blackwell, NVIDIA's libcu++ (``arch_traits.h``)."""

    shared_bytes: int
    """Shared memory, static and dynamic, of a kernel that opted in to more than 48 KiB."""


LIMITS = {
    "sm_80": BlockLimits(163 << 10),
    "sm_86": BlockLimits(99 << 10),
    "sm_89": BlockLimits(99 << 10),
    "sm_90a": BlockLimits(227 << 10),
    "sm_100": BlockLimits(227 << 10),
    "sm_100a": BlockLimits(227 << 10),
    "sm_103a": BlockLimits(227 << 10),
    "sm_120": BlockLimits(99 << 10),
    "sm_120a": BlockLimits(99 << 10),
}
"""The limits by architecture, oldest first. A kernel that is not for one architecture alone stays within the smallest
of these limits, because a newer GPU may have less shared memory than the one that the code was made for."""


def is_for_newer_ones(architecture: str) -> bool:
    """Whether newer GPUs can run code for it, too. They cannot if it has instructions of one architecture only
    (``sm_90a``)."""
    return not architecture.endswith("a")


def multiplies_fp8(architecture: str) -> bool:
    """Whether its tensor cores multiply 8-bit floats (PTX ISA, ``mma``: e4m3 from sm_89 on)."""
    names = list(LIMITS)
    return architecture in names[names.index("sm_89") :]


def multiplies_block_scaled(architecture: str) -> bool:
    """Whether its warps multiply numbers of 8 and 4 bits together with a scale for every few of them (PTX ISA, ``mma``
    with ``.block_scale``, which code for newer GPUs does not have: sm_120a)."""
    return architecture == "sm_120a"


def newest_that_runs(architectures: Iterable[str], capability: str) -> str | None:
    """The newest of ``architectures`` whose code runs on a GPU of compute capability ``capability`` (``9.0``); None if
    there is none.

    A GPU runs code for its own and for older architectures, but code such as ``sm_90a`` only if it is exactly that GPU.
    It runs machine code of its own major version; from an older one, the driver compiles the PTX (CUDA C++ Programming
    Guide, "Just-in-Time Compilation").
    """
    gpu = tuple(map(int, capability.split(".")))
    matches = {name: re.fullmatch(r"sm_(\d+)(\d)a?", name) for name in architectures}
    versions = {name: (int(match[1]), int(match[2])) for name, match in matches.items() if match is not None}
    fitting = [
        (version, not is_for_newer_ones(name), name)
        for name, version in versions.items()
        if version == gpu or (version < gpu and is_for_newer_ones(name))
    ]
    return max(fitting)[2] if fitting else None
