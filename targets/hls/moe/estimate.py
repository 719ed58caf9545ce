"""What a design costs on a part and how fast it is, without synthesis.

Cycles follow from the loops (``cycles.py``) and agree with the timed simulation; DSPs and memories are counted by rules
(``arithmetic.py``, ``memories.py``); LUTs and flip-flops are a rough model. No figure here has been through synthesis.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from moec.targets.hls.hardware.arithmetic import dsps_of, flip_flops, logic_luts
from moec.targets.hls.hardware.calibration import UNCORRECTED, Calibration
from moec.targets.hls.hardware.cycles import Cycles, MemoryPace, count_cycles
from moec.targets.hls.hardware.memories import Memory, memories_of
from moec.targets.hls.hardware.parts import Part
from moec.targets.hls.hardware.ports import Ports, connect, masters_of
from moec.targets.hls.moe.design import BEAT_BYTES, MOST_STAGES, Design


@dataclasses.dataclass(frozen=True)
class Resources:
    """Counts; block RAM in units of 18 Kbit."""

    dsp: int
    bram18: int
    uram: int
    lut: int
    flip_flops: int

    def corrected(self, calibration: Calibration) -> Resources:
        """As synthesis of other designs lets expect."""
        factors = calibration.factors()
        return Resources(**{name: round(getattr(self, name) * factor) for name, factor in factors.items()})


RESOURCE_NAMES = {
    "dsp": "DSPs",
    "bram18": "block RAMs of 18 Kbit",
    "uram": "UltraRAMs",
    "lut": "LUTs",
    "flip_flops": "flip-flops",
}
"""As people read them."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """``dsps``: by process. ``memories``: all on the chip. ``ports``: of the external memory. ``resources``:
    corrected by the ``calibration``."""

    design: Design
    part: Part
    clock_megahertz: float
    ports: Ports
    cycles: Cycles
    dsps: Mapping[str, int]
    memories: Sequence[Memory]
    resources: Resources
    calibration: Calibration = UNCORRECTED

    @property
    def pace(self) -> MemoryPace:
        """What each loader gets of the external memory."""
        return self.ports.loaders

    @property
    def milliseconds(self) -> float:
        return self.cycles.total / self.clock_megahertz / 1e3

    @property
    def gigabytes_per_second(self) -> float:
        """The rate at which weights are read, on average over a call."""
        return self.cycles.beats * BEAT_BYTES / (self.milliseconds * 1e6)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for artifacts and for the script that compares them with a synthesis report."""
        return {
            "part": self.part.device,
            "board": self.part.board,
            "clock_megahertz": self.clock_megahertz,
            "milliseconds": self.milliseconds,
            "gigabytes_per_second": self.gigabytes_per_second,
            "cycles_per_beat": self.pace.cycles_per_beat,
            "ports": ports_as_dict(self.ports),
            "cycles": {**dataclasses.asdict(self.cycles), "total": self.cycles.total, "bound_by": self.cycles.bound_by},
            "resources": dataclasses.asdict(self.resources),
            "factors": self.calibration.factors(),
            "stages": self.calibration.stages,
            "most_stages": MOST_STAGES,
            "available": {name: getattr(self.part, name) for name in RESOURCE_NAMES},
            "dsp_by_process": dict(self.dsps),
            "memories": [dataclasses.asdict(memory) for memory in self.memories],
        }


def estimate(
    design: Design,
    part: Part,
    loads: Sequence[int],
    clock_megahertz: float | None = None,
    memory_share: float = 1.0,
    calibration: Calibration = UNCORRECTED,
) -> Estimate:
    """``loads``: tokens of each expert in a call, shared ones last. ``memory_share``: of the peak bandwidth.

    Raises ValueError for loads that no call can have.
    """
    clock = clock_megahertz or part.clock_megahertz
    ports = connect(part, masters_of(design), clock, memory_share)
    cycles = count_cycles(design, loads, ports.loaders, calibration.stages)
    return assemble(design, part, clock, ports, cycles, calibration)


def assemble(
    design: Design,
    part: Part,
    clock_megahertz: float,
    ports: Ports,
    cycles: Cycles,
    calibration: Calibration = UNCORRECTED,
) -> Estimate:
    """The estimate of a design whose cycles are known."""
    memories = memories_of(design)
    resources = resources_of(design, memories).corrected(calibration)
    return Estimate(design, part, clock_megahertz, ports, cycles, dsps_of(design), memories, resources, calibration)


def ports_as_dict(ports: Ports) -> dict[str, Any]:
    """Plain data, as ``moec simulate`` reads it: ``share`` and ``total_share`` are beats per cycle."""
    return {"of": dict(ports.of), "share": ports.share, "total_share": ports.total_share}


def resources_of(design: Design, memories: Sequence[Memory] | None = None) -> Resources:
    memories = memories_of(design) if memories is None else memories
    luts = logic_luts(design) + sum(memory.luts for memory in memories)
    return Resources(
        dsp=sum(dsps_of(design).values()),
        bram18=sum(memory.bram18 for memory in memories),
        uram=sum(memory.uram for memory in memories),
        lut=luts,
        flip_flops=flip_flops(luts),
    )
