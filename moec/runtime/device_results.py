"""Results of a run where the program ran, before anything is moved to the host."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from moec.runtime.device import Device


@dataclasses.dataclass(frozen=True)
class DeviceResults:
    """``tensors``: the runtime's, by output; those that are ``borrowed`` may be overwritten by the next run.
    ``call_kernel``: calls one of the program's kernels by its name, behind the run."""

    device: Device
    tensors: Mapping[str, Any]
    borrowed: Collection[str]
    call_kernel: Callable[[str, Sequence[Any]], None]

    def owned(self, name: str) -> Any:
        """An output in memory of its own."""
        return self.device.copy(self.tensors[name]) if name in self.borrowed else self.tensors[name]


Ending = Callable[[DeviceResults], Any]
"""What becomes of the results of a run, in place of arrays on the host."""
