"""Costs of any design on a part: counts of resources, and the estimate that reports and commands read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

from moec.targets.hls.design.numbers import BEAT_BYTES, MOST_STAGES
from moec.targets.hls.hardware.arithmetic import flip_flops
from moec.targets.hls.hardware.calibration import UNCORRECTED, Calibration
from moec.targets.hls.hardware.memories import Memory
from moec.targets.hls.hardware.parts import FpgaPart
from moec.targets.hls.hardware.ports import Ports

RESOURCE_NAMES = {
    "dsp": "DSPs",
    "bram18": "block RAMs of 18 Kbit",
    "uram": "UltraRAMs",
    "lut": "LUTs",
    "flip_flops": "flip-flops",
}
"""The names of resources in messages and tables."""


@dataclasses.dataclass(frozen=True)
class Resources:
    """Counts; block RAM in units of 18 Kbit."""

    dsp: int
    bram18: int
    uram: int
    lut: int
    flip_flops: int

    @staticmethod
    def of(dsps: Mapping[str, int], memories: Sequence[Memory], logic_luts: int) -> Resources:
        """The sum over a design. ``dsps``: by process. ``logic_luts``: without those of memories."""
        luts = logic_luts + sum(memory.luts for memory in memories)
        return Resources(
            dsp=sum(dsps.values()),
            bram18=sum(memory.bram18 for memory in memories),
            uram=sum(memory.uram for memory in memories),
            lut=luts,
            flip_flops=flip_flops(luts),
        )

    def corrected(self, calibration: Calibration) -> Resources:
        """The counts times the factors that synthesis of other designs suggests."""
        factors = calibration.factors()
        return Resources(**{name: round(getattr(self, name) * factor) for name, factor in factors.items()})


class CallCycles(Protocol):
    """The cycles of a call, in phases or layers. ``beats``: AXI transfers that read weights."""

    @property
    def beats(self) -> int: ...
    @property
    def total(self) -> int: ...
    @property
    def bound_by(self) -> str:
        """The bottleneck: the phase that a faster design has to speed up first."""
        ...


DesignOf = TypeVar("DesignOf")
CyclesOf = TypeVar("CyclesOf", bound=CallCycles)


@dataclasses.dataclass(frozen=True)
class Estimate(Generic[DesignOf, CyclesOf]):
    """The estimated costs of a design on a part. ``ports``: of the external memory; ``dsps``: by process;
    ``memories``: all on the chip; ``resources``: corrected by ``calibration``."""

    design: DesignOf
    part: FpgaPart
    clock_megahertz: float
    ports: Ports
    cycles: CyclesOf
    dsps: Mapping[str, int]
    memories: Sequence[Memory]
    resources: Resources
    calibration: Calibration = UNCORRECTED

    @staticmethod
    def of(
        design: DesignOf,
        part: FpgaPart,
        clock_megahertz: float,
        ports: Ports,
        cycles: CyclesOf,
        dsps: Mapping[str, int],
        memories: Sequence[Memory],
        logic_luts: int,
        calibration: Calibration,
    ) -> Estimate[DesignOf, CyclesOf]:
        """The estimate of a design whose cycles are known. ``logic_luts``: without those of memories."""
        resources = Resources.of(dsps, memories, logic_luts).corrected(calibration)
        return Estimate(design, part, clock_megahertz, ports, cycles, dsps, memories, resources, calibration)

    @property
    def milliseconds(self) -> float:
        return self.cycles.total / self.clock_megahertz / 1e3

    @property
    def gigabytes_per_second(self) -> float:
        """The rate at which weights are read, on average over a call."""
        return self.cycles.beats * BEAT_BYTES / (self.milliseconds * 1e6)

    def call(self, cycles: CallCycles) -> dict[str, float]:
        """The speed of another call, as plain data. ``memory_share``: the part of the memory's bandwidth that reads
        weights."""
        seconds = cycles.total / self.clock_megahertz / 1e6
        rate = cycles.beats * BEAT_BYTES / seconds / 1e9
        return {
            "cycles": cycles.total,
            "milliseconds": seconds * 1e3,
            "gigabytes_per_second": rate,
            "memory_share": rate / self.part.memory.gigabytes_per_second,
        }

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for artifacts and for the script that compares them with a synthesis report."""
        cycles = dataclasses.asdict(self.cycles)  # type: ignore[arg-type]
        return {
            "part": self.part.device,
            "board": self.part.board,
            "clock_megahertz": self.clock_megahertz,
            "milliseconds": self.milliseconds,
            "gigabytes_per_second": self.gigabytes_per_second,
            "cycles_per_beat": self.ports.loaders.cycles_per_beat,
            "ports": {"of": dict(self.ports.of), "share": self.ports.share, "total_share": self.ports.total_share},
            "cycles": {**cycles, "total": self.cycles.total, "bound_by": self.cycles.bound_by},
            "resources": dataclasses.asdict(self.resources),
            "factors": self.calibration.factors(),
            "stages": self.calibration.stages,
            "most_stages": MOST_STAGES,
            "available": {name: getattr(self.part, name) for name in RESOURCE_NAMES},
            "dsp_by_process": dict(self.dsps),
            "memories": [dataclasses.asdict(memory) for memory in self.memories],
        }
