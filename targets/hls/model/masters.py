"""The number of AXI masters that bring the weights of experts, as far as the memory has ports for them.

A master gets at most one beat per cycle, and tokens that come one by one wait for weights. So for a decoder with a
cache, the number is chosen for single tokens; a prompt becomes no slower by it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from moec.targets.hls.hardware.costs import RESOURCE_NAMES
from moec.targets.hls.hardware.parts import FpgaPart
from moec.targets.hls.hardware.ports import model_ports
from moec.targets.hls.model.calls import token_cycles
from moec.targets.hls.model.design import ModelDesign
from moec.targets.hls.model.estimate import Loads, ModelEstimate, estimate_model
from moec.targets.hls.model.plan import ModelPlan
from moec.targets.hls.moe.exploration import Constraints, masters_for

_FAST_ENOUGH = 1.05
"""The cycles of a design with fewer masters that may replace the fastest one, as a part of the fastest one's."""


def with_masters(
    chosen: ModelEstimate, plan: ModelPlan, loads: Loads, part: FpgaPart, constraints: Constraints
) -> ModelEstimate:
    """The chosen design with the fewest masters that are about as fast as any number that fits."""
    limits, clock = constraints.limits(part), constraints.clock(part)
    estimates = [chosen]
    for design in _designs(chosen.design, part):
        estimate = estimate_model(design, plan, loads, part, clock, constraints.memory_share, constraints.calibration)
        if all(getattr(estimate.resources, name) <= getattr(limits, name) for name in RESOURCE_NAMES):
            estimates.append(estimate)
    cycles = [_cycles(estimate, plan) for estimate in estimates]
    return next(
        estimate for estimate, taken in zip(estimates, cycles, strict=True) if taken <= min(cycles) * _FAST_ENOUGH
    )


def _cycles(estimate: ModelEstimate, plan: ModelPlan) -> int:
    attention = estimate.design.attention
    is_one_by_one = estimate.design.is_decoder and attention is not None and attention.shape.cached
    return token_cycles(estimate, plan).total if is_one_by_one else estimate.cycles.total


def _designs(design: ModelDesign, part: FpgaPart) -> Iterator[ModelDesign]:
    """The design with more masters, each at a port of its own, from few to many."""
    attention = None if design.attention is None else design.attention.shape
    for up, down in masters_for(design.experts.shape)[1:]:
        striped = dataclasses.replace(design, moe=dataclasses.replace(design.experts, masters_up=up, masters_down=down))
        others = set(model_ports(part.memory, attention).values())
        if up + down + len(others) - 2 <= part.memory.ports and striped.why_not() is None:
            yield striped
