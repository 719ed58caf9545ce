"""The launch of a kernel: its name, and the values that follow its arguments."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class EmulatedLaunch:
    """One kernel of a CUDA source, as TVM's host code calls it."""

    name: str
    """The kernel's symbol in the source."""
    tags: tuple[str, ...]
    """The meanings of the values after the kernel's arguments, in order, as in TVM's ``launch_param_tags``:
    ``blockIdx.x`` is the grid's extent, ``threadIdx.x`` the block's, ``tirx.use_dyn_shared_memory`` bytes."""
