"""The GPUs that code is generated for, by architecture, and what a block of threads may have there."""

from __future__ import annotations

import dataclasses

WARP = 32
"""Threads of a warp."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"."""

    shared_bytes: int
    """Static arrays and what is asked for at the launch, where the kernel opted in to more than 48 KiB."""


LIMITS = {
    "sm_80": Limits(163 << 10),
    "sm_86": Limits(99 << 10),
    "sm_89": Limits(99 << 10),
    "sm_90a": Limits(227 << 10),
}
"""From the oldest to the newest."""


def is_for_newer_ones(architecture: str) -> bool:
    """Whether newer GPUs can run what is made for it: all but what has a GPU's own instructions (``sm_90a``)."""
    return not architecture.endswith("a")
