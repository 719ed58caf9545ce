"""The choice of a design for a layer and a part.

All designs of a small grid are costed but those that the templates refuse (:meth:`Design.why_not`) and those that do
not fit. What is left is a Pareto front over cycles, DSPs, block RAM, UltraRAM and LUTs: no design on it is beaten or
equalled by another in all of them. Designs are equal where estimates cannot tell them apart: cycles within 1%, LUTs
within 5%. Bandwidth is shown and not compared, for it is the same bytes in another time. Chosen is, of the designs
within 5% of the fastest, the one that leaves most of the part free.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from moec.errors import UnsupportedError
from moec.targets.hls.hardware.calibration import UNCORRECTED, Calibration
from moec.targets.hls.hardware.costs import RESOURCE_NAMES, Resources
from moec.targets.hls.hardware.cycles import Cycles, MemoryPace, count_cycles, route_cycles, tokens_in
from moec.targets.hls.hardware.parts import PARTS, Part
from moec.targets.hls.hardware.ports import connect, masters_of
from moec.targets.hls.moe.design import BlockShape, Design, Fifos, LargeArrays
from moec.targets.hls.moe.estimate import MoeEstimate, assemble, resources_of
from moec.targets.hls.moe.loads import even_loads, starving_loads

LANES = (8, 16, 32, 64)
HIDDEN_TILES = (16, 32, 64, 128, 256)
ROUTER_LANES = (1, 2, 4, 8, 16, 32)
ROUTERS_IN_TURNS = tuple(itertools.product((8, 16, 32), (8, 32)))
"""Inputs, and experts at once, of routers whose experts take turns: where fewer inputs of all would be as much."""
MASTERS = (1, 2, 4, 8)
"""Of the second product; the first has as many per row of a hidden unit, for it takes as many beats."""
WEIGHT_FIFOS = (32, 128)
"""Beats: one fits into LUT RAM, the other holds two bursts."""
_MOST_MEGAHERTZ = 891
"""A DSP48E2's clock in the fastest speed grade of UltraScale+ (DS925 and DS926, DSP48 switching characteristics)."""
_AS_FAST, _AS_SMALL = 1.01, 1.05
"""What estimates cannot tell from 1: of cycles, and of LUTs."""
_FAST_ENOUGH = 1.05
"""The cycles that a smaller design may take to be chosen in the fastest one's place, as a part of its."""

DEFAULT_SHARES: Mapping[str, float] = {"dsp": 0.8, "bram18": 0.8, "uram": 0.8, "lut": 0.7, "flip_flops": 0.5}
"""The shares of a part that a design may take by default, so that it meets its clock and leaves room for a platform:
the limits of Vivado's report_failfast (UG1292, UltraFast Timing Closure)."""


@dataclasses.dataclass(frozen=True)
class Constraints:
    """What a user allows. Without a number of its own, a resource is limited to its default share of the part.

    ``memory_share``: of the peak bandwidth of the external memory. ``use_uram``: large arrays may be in UltraRAM.
    ``calibration``: what synthesis made of other designs.
    """

    max_dsp: int | None = None
    max_bram18: int | None = None
    max_uram: int | None = None
    max_lut: int | None = None
    max_flip_flops: int | None = None
    clock_megahertz: float | None = None
    memory_share: float = 1.0
    use_uram: bool = False
    calibration: Calibration = UNCORRECTED

    def __post_init__(self) -> None:
        """Raises UnsupportedError for a clock that no part has, and for no share of the memory."""
        clock = self.clock_megahertz
        if clock is not None and not 0 < clock <= _MOST_MEGAHERTZ:
            raise UnsupportedError(f"a clock of {clock:g} MHz: a DSP48E2 runs with at most {_MOST_MEGAHERTZ} MHz")
        if not 0 < self.memory_share <= 1:
            raise UnsupportedError(f"a share of {self.memory_share:g} of the memory: expected more than 0, up to 1")

    def clock(self, part: Part) -> float:
        """In MHz: the one asked for, or the part's, or what synthesis has reached instead."""
        return self.clock_megahertz or min(part.clock_megahertz, self.calibration.clock(part.device))

    def limits(self, part: Part) -> Resources:
        """No number of a user's makes a part larger."""
        found = {}
        for name in RESOURCE_NAMES:
            has, asked = getattr(part, name), getattr(self, f"max_{name}")
            found[name] = int(has * DEFAULT_SHARES[name]) if asked is None else min(asked, has)
        return Resources(**found)


@dataclasses.dataclass(frozen=True)
class CostedDesign:
    """A design that fits. ``starved``: its cycles where loads are about as unfortunate as they can be."""

    estimate: MoeEstimate
    starved: Cycles

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as an artifact keeps it."""
        design, cycles = self.estimate.design, self.estimate.cycles
        return {
            "lanes": design.lanes_out,
            "hidden_tile": design.hidden_tile,
            "router_lanes": design.router_lanes,
            "router_experts": design.router_rows,
            "masters": [design.masters_up, design.masters_down],
            "weight_fifo": design.fifos.weights,
            "large_arrays": design.large_arrays,
            "cycles": cycles.total,
            "starved_cycles": self.starved.total,
            "bound_by": cycles.bound_by,
            "milliseconds": self.estimate.milliseconds,
            "gigabytes_per_second": self.estimate.gigabytes_per_second,
            "resources": dataclasses.asdict(self.estimate.resources),
        }


@dataclasses.dataclass(frozen=True)
class Exploration:
    """``front``: from fast to slow. ``considered``: designs that the templates can build, ``fitting``: on this part."""

    part: Part
    constraints: Constraints
    loads: Sequence[int]
    considered: int
    fitting: int
    front: Sequence[CostedDesign]
    chosen: CostedDesign

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as an artifact keeps it."""
        return {
            "board": self.part.board,
            "clock_megahertz": self.chosen.estimate.clock_megahertz,
            "memory_share": self.constraints.memory_share,
            "limits": dataclasses.asdict(self.constraints.limits(self.part)),
            "loads": list(self.loads),
            "considered": self.considered,
            "fitting": self.fitting,
            "front": [{**candidate.as_dict(), "chosen": candidate is self.chosen} for candidate in self.front],
        }


def explore(
    shape: BlockShape, part: Part, constraints: Constraints = Constraints(), loads: Sequence[int] | None = None
) -> Exploration:
    """``loads``: tokens of each expert to be fast for, shared ones last, as calibration counts them; even by default.

    Raises UnsupportedError where no design can be built or none fits: what is missing, and what would fit.
    """
    designs = _buildable(shape, part, constraints)
    limits = constraints.limits(part)
    fitting = [design for design in designs if not _excess(_resources(design, constraints), limits)]
    if not fitting:
        raise UnsupportedError(_nothing_fits(shape, part, constraints, designs))
    candidates = _cost(fitting, part, constraints, even_loads(shape) if loads is None else loads)
    front = _pareto_front(candidates)
    return Exploration(
        part=part,
        constraints=constraints,
        loads=even_loads(shape) if loads is None else loads,
        considered=len(designs),
        fitting=len(fitting),
        front=front,
        chosen=_choose(front, part),
    )


def designs_of(
    shape: BlockShape, large_arrays: Sequence[LargeArrays] = ("bram",), masters: Sequence[tuple[int, int]] = ((1, 1),)
) -> Iterator[Design]:
    """The grid, whether or not the templates can build its points."""
    grid = itertools.product(LANES, HIDDEN_TILES, routers_of(shape), masters, WEIGHT_FIFOS, large_arrays)
    for lanes, tile, (router_lanes, at_once), (up, down), weights, storage in grid:
        if router_lanes <= lanes <= tile:
            yield Design(shape, lanes, lanes, tile, router_lanes, up, down, Fifos(weights=weights), storage, at_once)


def routers_of(shape: BlockShape) -> list[tuple[int, int | None]]:
    """Inputs that a router takes per cycle, and for how many experts at once; None: for all."""
    in_turns = [(lanes, at_once) for lanes, at_once in ROUTERS_IN_TURNS if 2 * at_once <= shape.experts]
    return [*((lanes, None) for lanes in ROUTER_LANES), *in_turns]


def _buildable(shape: BlockShape, part: Part, constraints: Constraints) -> list[Design]:
    storages = _storages(part, constraints)
    found = [
        design
        for design in designs_of(shape, storages, masters_for(shape))
        if not design.why_not() and _has_ports(design, part)
    ]
    if not found:
        raise UnsupportedError(f"no HLS design for this MoE block: {Design(shape).why_not()}")
    return found


def _has_ports(design: Design, part: Part) -> bool:
    """Whether striped weights have ports of their own, without which there is nothing to be had by them."""
    masters = design.masters_up + design.masters_down
    return masters == 2 or masters <= part.memory.ports


def masters_for(shape: BlockShape) -> list[tuple[int, int]]:
    """Of both products."""
    rows = 2 if shape.gated else 1
    return list(dict.fromkeys([(1, 1), *((rows * down, down) for down in MASTERS)]))


def _cost(designs: Sequence[Design], part: Part, constraints: Constraints, loads: Sequence[int]) -> list[CostedDesign]:
    clock, calibration = constraints.clock(part), constraints.calibration
    found = []
    by_masters = sorted(designs, key=_masters_of)
    for _, alike in itertools.groupby(by_masters, key=_masters_of):
        first, *more = alike
        ports = connect(part, masters_of(first), clock, constraints.memory_share)
        expected, starved = (
            _Timing(counts, ports.loaders, calibration.stages) for counts in (loads, starving_loads(first.shape))
        )
        found += [
            CostedDesign(assemble(design, part, clock, ports, expected.of(design), calibration), starved.of(design))
            for design in (first, *more)
        ]
    return found


def _masters_of(design: Design) -> tuple[int, int]:
    return design.masters_up, design.masters_down


def _resources(design: Design, constraints: Constraints) -> Resources:
    return resources_of(design).corrected(constraints.calibration)


class _Timing:
    """Cycles of many designs: the router and where arrays are do not change what happens behind routing."""

    def __init__(self, loads: Sequence[int], pace: MemoryPace, stages: int) -> None:
        self._loads = loads
        self._pace = pace
        self._stages = stages
        self._known: dict[Design, Cycles] = {}

    def of(self, design: Design) -> Cycles:
        base = dataclasses.replace(design, router_lanes=1, router_experts=None, large_arrays="bram")
        if base not in self._known:
            self._known[base] = count_cycles(base, self._loads, self._pace, self._stages)
        route = route_cycles(design, tokens_in(design.shape, self._loads), self._pace, self._stages)
        return dataclasses.replace(self._known[base], route=route)


def _costs(candidate: CostedDesign) -> tuple[int, ...]:
    resources = candidate.estimate.resources
    return candidate.estimate.cycles.total, resources.dsp, resources.bram18, resources.uram, resources.lut


def _pareto_front(candidates: Sequence[CostedDesign]) -> list[CostedDesign]:
    """From fast to slow; of equals, the first."""

    def speed(candidate: CostedDesign) -> int:
        return math.floor(math.log(candidate.estimate.cycles.total, _AS_FAST))

    front: list[CostedDesign] = []
    for candidate in sorted(candidates, key=lambda one: (speed(one), *_costs(one)[1:], _costs(one)[0])):
        if not any(_as_cheap(other, candidate) for other in front):
            front.append(candidate)
    return sorted(front, key=_costs)


def _as_cheap(one: CostedDesign, other: CostedDesign) -> bool:
    *blocks, luts = _costs(one)[1:]
    *other_blocks, other_luts = _costs(other)[1:]
    return all(a <= b for a, b in zip(blocks, other_blocks, strict=True)) and luts <= other_luts * _AS_SMALL


def _choose(front: Sequence[CostedDesign], part: Part) -> CostedDesign:
    fastest = min(candidate.estimate.cycles.total for candidate in front)
    fast = [candidate for candidate in front if candidate.estimate.cycles.total <= fastest * _FAST_ENOUGH]
    return min(fast, key=lambda candidate: (fullest(candidate.estimate.resources, part), _costs(candidate)))


def fullest(resources: Resources, part: Part) -> float:
    """The share of the resource of which most is taken."""
    return max(getattr(resources, name) / getattr(part, name) for name in RESOURCE_NAMES if getattr(part, name))


def _excess(resources: Resources, limits: Resources) -> dict[str, int]:
    """By how much a design is too large, by resource."""
    differences = {name: getattr(resources, name) - getattr(limits, name) for name in RESOURCE_NAMES}
    return {name: difference for name, difference in differences.items() if difference > 0}


def _nothing_fits(shape: BlockShape, part: Part, constraints: Constraints, designs: Sequence[Design]) -> str:
    limits = constraints.limits(part)

    def overrun(design: Design) -> tuple[float, Resources]:
        resources = _resources(design, constraints)
        ratios = [getattr(resources, name) / max(getattr(limits, name), 1) for name in RESOURCE_NAMES]
        return max(ratios), resources

    _, resources = min((overrun(design) for design in designs), key=lambda pair: pair[0])
    short = ", ".join(
        f"{getattr(resources, name)} {RESOURCE_NAMES[name]} ({more} more than the {getattr(limits, name)} allowed, "
        f"of {getattr(part, name)})"
        for name, more in _excess(resources, limits).items()
    )
    return (
        f"{shape.tokens} tokens of {shape.width} through {shape.all_experts} experts of {shape.hidden} do not fit "
        f"{part.board}: the smallest design needs {short}; {_what_fits(shape, part, constraints)}"
    )


def _what_fits(shape: BlockShape, part: Part, constraints: Constraints) -> str:
    """The nearest asks that can be met."""
    found = []
    tokens = _most_tokens(shape, part, constraints)
    if tokens:
        found.append(f"at most {tokens} tokens per call")
    if shape.weight_bits == 8 and _fits(dataclasses.replace(shape, weight_bits=4), part, constraints):
        found.append("int4 weights")
    if not constraints.use_uram and _fits(shape, part, dataclasses.replace(constraints, use_uram=True)):
        found.append("large arrays in UltraRAM")
    unlimited = Constraints(use_uram=constraints.use_uram, calibration=constraints.calibration)
    if constraints.limits(part) != unlimited.limits(part) and _fits(shape, part, unlimited):
        found.append("the same part without limits of your own")
    larger = [other for other in PARTS[PARTS.index(part) + 1 :] if _fits(shape, other, unlimited)]
    if larger:
        found.append(f"the part {larger[0].board}")
    return f"what would fit: {', or '.join(found)}" if found else "no part that moec knows is large enough"


def _fits(shape: BlockShape, part: Part, constraints: Constraints) -> bool:
    limits = constraints.limits(part)
    designs = designs_of(shape, _storages(part, constraints))
    return any(not design.why_not() and not _excess(_resources(design, constraints), limits) for design in designs)


def _storages(part: Part, constraints: Constraints) -> tuple[LargeArrays, ...]:
    return ("bram", "uram") if constraints.use_uram and part.uram else ("bram",)


def _most_tokens(shape: BlockShape, part: Part, constraints: Constraints) -> int:
    """The largest number that fits, or 0: memories grow with tokens, so halves can be searched."""
    fits, too_many = 0, shape.tokens
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if _fits(dataclasses.replace(shape, tokens=middle), part, constraints):
            fits = middle
        else:
            too_many = middle
    return fits
