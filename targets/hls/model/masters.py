"""How many AXI masters bring the weights of experts, where the memory has ports for them.

One master gets a beat per cycle at most, and tokens that come one by one wait for weights. So of a decoder with a cache
single tokens decide; a prompt is computed no slower.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from moec.targets.hls.hardware.costs import RESOURCE_NAMES
from moec.targets.hls.hardware.parts import Part
from moec.targets.hls.hardware.ports import model_ports
from moec.targets.hls.model.calls import token_cycles
from moec.targets.hls.model.design import ModelDesign
from moec.targets.hls.model.estimate import Loads, ModelEstimate, estimate_model
from moec.targets.hls.model.plan import ModelPlan
from moec.targets.hls.moe.exploration import Constraints, masters_for

_FAST_ENOUGH = 1.05
"""The cycles that fewer masters may take, as a part of the fastest's."""


def with_masters(
    chosen: ModelEstimate, plan: ModelPlan, loads: Loads, part: Part, constraints: Constraints
) -> ModelEstimate:
    """The chosen design with the fewest masters that are about as fast as any number of them that fits."""
    limits, clock = constraints.limits(part), constraints.clock(part)
    found = [chosen]
    for design in _designs(chosen.design, part):
        one = estimate_model(design, plan, loads, part, clock, constraints.memory_share, constraints.calibration)
        if all(getattr(one.resources, name) <= getattr(limits, name) for name in RESOURCE_NAMES):
            found.append(one)
    cycles = [_cycles(one, plan) for one in found]
    return next(one for one, taken in zip(found, cycles, strict=True) if taken <= min(cycles) * _FAST_ENOUGH)


def _cycles(estimate: ModelEstimate, plan: ModelPlan) -> int:
    attention = estimate.design.attention
    is_one_by_one = estimate.design.is_decoder and attention is not None and attention.shape.cached
    return token_cycles(estimate, plan).total if is_one_by_one else estimate.cycles.total


def _designs(design: ModelDesign, part: Part) -> Iterator[ModelDesign]:
    """With more masters, each at a port of its own, from few to many."""
    attention = None if design.attention is None else design.attention.shape
    for up, down in masters_for(design.experts.shape)[1:]:
        found = dataclasses.replace(
            design, experts=dataclasses.replace(design.experts, masters_up=up, masters_down=down)
        )
        others = set(model_ports(part.memory, attention).values())
        if up + down + len(others) - 2 <= part.memory.ports and found.why_not() is None:
            yield found
