"""The program of a model's MTP layer, as an artifact lists it."""

from __future__ import annotations

import dataclasses

from moec.runtime.interface import Interface
from moec.runtime.manifest import MtpEntry, ProgramEntry
from moec.targets.base import Program


@dataclasses.dataclass(frozen=True)
class MtpProgram:
    """Program of an MTP layer, and its interface."""

    interface: Interface
    program: Program

    def entry(self, written: ProgramEntry) -> MtpEntry:
        """Entry of the manifest for the ``written`` program."""
        interface = self.interface
        return MtpEntry(
            inputs=list(interface.inputs),
            outputs=list(interface.outputs),
            states=list(interface.states),
            input_limits=dict(interface.limits),
            input_sizes=dict(interface.sizes),
            counted_inputs=list(interface.counted),
            guards=list(interface.guards),
            program=written,
        )
