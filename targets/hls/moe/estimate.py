"""Estimated costs and speed of a MoE design on a part, without synthesis.

Cycles follow from the loops (``cycles.py``) and agree with the timed simulation. DSPs and memories are counted by rules
(``arithmetic.py``, ``memories.py``). LUTs and flip-flops are a rough model. No figure here comes from synthesis.
"""

from __future__ import annotations

from collections.abc import Sequence

from moec.targets.hls.design.experts import Design
from moec.targets.hls.hardware.arithmetic import dsps_of, logic_luts
from moec.targets.hls.hardware.calibration import UNCORRECTED, Calibration
from moec.targets.hls.hardware.costs import Estimate, Resources
from moec.targets.hls.hardware.cycles import Cycles, count_cycles
from moec.targets.hls.hardware.memories import Memory, memories_of
from moec.targets.hls.hardware.parts import FpgaPart
from moec.targets.hls.hardware.ports import Ports, connect, masters_of

MoeEstimate = Estimate[Design, Cycles]


def estimate(
    design: Design,
    part: FpgaPart,
    loads: Sequence[int],
    clock_megahertz: float | None = None,
    memory_share: float = 1.0,
    calibration: Calibration = UNCORRECTED,
) -> MoeEstimate:
    """The estimate of a design. ``loads``: tokens of each expert in a call, shared ones last. ``memory_share``: of the
    peak bandwidth.

    Raises ValueError for loads that no call can have.
    """
    clock = clock_megahertz or part.clock_megahertz
    ports = connect(part, masters_of(design), clock, memory_share)
    cycles = count_cycles(design, loads, ports.loaders, calibration.stages)
    return assemble(design, part, clock, ports, cycles, calibration)


def assemble(
    design: Design,
    part: FpgaPart,
    clock_megahertz: float,
    ports: Ports,
    cycles: Cycles,
    calibration: Calibration = UNCORRECTED,
) -> MoeEstimate:
    """The estimate of a design whose cycles are known."""
    memories = memories_of(design)
    resources = resources_of(design, memories).corrected(calibration)
    return Estimate(design, part, clock_megahertz, ports, cycles, dsps_of(design), memories, resources, calibration)


def resources_of(design: Design, memories: Sequence[Memory] | None = None) -> Resources:
    return Resources.of(dsps_of(design), memories_of(design) if memories is None else memories, logic_luts(design))
