"""The selection of a design for a layer and a part.

All designs of a small grid are costed, except those that the templates refuse (:meth:`Design.why_not`) and those that
do not fit. They are reduced to a Pareto front over cycles, DSPs, block RAM, UltraRAM and LUTs: no design on it is
matched or beaten by another in all of these. Figures are equal where estimates cannot tell them apart: cycles within
1%, LUTs within 5%. Bandwidth is shown but not compared, since it is the same bytes over the cycles. Among the designs
within 5% of the fastest, the one that leaves most of the part free is chosen.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from moec.common.errors import UnsupportedError
from moec.targets.hls.design.experts import BlockShape, Design, LargeArrays
from moec.targets.hls.design.numbers import Fifos
from moec.targets.hls.hardware.arithmetic import dsps_of, logic_luts
from moec.targets.hls.hardware.calibration import UNCORRECTED, Calibration
from moec.targets.hls.hardware.costs import RESOURCE_NAMES, Estimate, Resources
from moec.targets.hls.hardware.cycles import Cycles, MemoryPace, count_cycles, route_cycles, tokens_in
from moec.targets.hls.hardware.memories import memories_of
from moec.targets.hls.hardware.parts import PARTS, FpgaPart
from moec.targets.hls.hardware.ports import Ports, connect, masters_of
from moec.targets.hls.moe.loads import even_loads, starving_loads

MoeEstimate = Estimate[Design, Cycles]

LANES = (8, 16, 32, 64)
HIDDEN_TILES = (16, 32, 64, 128, 256)
ROUTER_LANES = (1, 2, 4, 8, 16, 32)
ROUTERS_IN_TURNS = tuple(itertools.product((8, 16, 32), (8, 32)))
"""Inputs per cycle, and experts at once, of routers that compute some experts after the others: an alternative to
fewer inputs of all experts at the same cost."""
MASTERS = (1, 2, 4, 8)
"""Masters of the second product. The first has as many per row of a hidden unit, since each row takes as many beats."""
WEIGHT_FIFOS = (32, 128)
"""Depths of the channels of weights in beats: one fits into LUT RAM, the other holds two bursts."""
_MOST_MEGAHERTZ = 891
"""A DSP48E2's clock in the fastest speed grade of UltraScale+ (DS925 and DS926, DSP48 switching characteristics)."""
_AS_FAST, _AS_SMALL = 1.01, 1.05
"""Ratios of cycles, and of LUTs, that estimates cannot tell from 1."""
_FAST_ENOUGH = 1.05
"""The cycles of a smaller design that may replace the fastest one, as a part of the fastest one's."""

DEFAULT_SHARES: Mapping[str, float] = {"dsp": 0.8, "bram18": 0.8, "uram": 0.8, "lut": 0.7, "flip_flops": 0.5}
"""Shares of a part that a design may take by default, so that it meets its clock and leaves room for a platform: the
limits of Vivado's report_failfast (UG1292, UltraFast Timing Closure)."""


@dataclasses.dataclass(frozen=True)
class Constraints:
    """A user's limits. A resource without a limit is limited to its default share of the part.

    ``memory_share``: of the peak bandwidth of the external memory. ``use_uram``: large arrays may be in UltraRAM.
    ``calibration``: from synthesis of other designs.
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
        """Check the numbers. Raises UnsupportedError for a clock that no part has, and for a share of the memory that
        is not above 0 and at most 1."""
        clock = self.clock_megahertz
        if clock is not None and not 0 < clock <= _MOST_MEGAHERTZ:
            raise UnsupportedError(f"clock is {clock:g} MHz; expected at most {_MOST_MEGAHERTZ} MHz")
        if not 0 < self.memory_share <= 1:
            raise UnsupportedError(f"a share of {self.memory_share:g} of the memory; expected more than 0, up to 1")

    def clock(self, part: FpgaPart) -> float:
        """The clock in MHz: the user's, or else the part's, or the one that synthesis reached where that is slower."""
        return self.clock_megahertz or min(part.clock_megahertz, self.calibration.clock(part.device))

    def limits(self, part: FpgaPart) -> Resources:
        """The limit of each resource: the user's or the default share, and never more than the part has."""
        limits = {}
        for name in RESOURCE_NAMES:
            has, asked = getattr(part, name), getattr(self, f"max_{name}")
            limits[name] = int(has * DEFAULT_SHARES[name]) if asked is None else min(asked, has)
        return Resources(**limits)


@dataclasses.dataclass(frozen=True)
class CostedDesign:
    """A design that fits. ``starved``: its cycles under about the slowest distribution of tokens over experts."""

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
    """The result of an exploration. ``front``: from fast to slow. ``considered``: the number of designs that the
    templates can build; ``fitting``: the number that fits the part."""

    part: FpgaPart
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
    shape: BlockShape, part: FpgaPart, constraints: Constraints = Constraints(), loads: Sequence[int] | None = None
) -> Exploration:
    """Explore the designs of a layer. ``loads``: tokens of each expert to optimise for, shared ones last, as counted on
    calibration data; even by default.

    Raises UnsupportedError where no design can be built, or none fits: it says what is missing, and what would fit.
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
    """The designs of the grid, whether or not the templates can build them."""
    grid = itertools.product(LANES, HIDDEN_TILES, routers_of(shape), masters, WEIGHT_FIFOS, large_arrays)
    for lanes, tile, (router_lanes, at_once), (up, down), weights, storage in grid:
        if router_lanes <= lanes <= tile:
            yield Design(shape, lanes, lanes, tile, router_lanes, up, down, Fifos(weights=weights), storage, at_once)


def routers_of(shape: BlockShape) -> list[tuple[int, int | None]]:
    """Routers to try: inputs per cycle, and experts at once (None: all)."""
    in_turns = [(lanes, at_once) for lanes, at_once in ROUTERS_IN_TURNS if 2 * at_once <= shape.experts]
    return [*((lanes, None) for lanes in ROUTER_LANES), *in_turns]


def _buildable(shape: BlockShape, part: FpgaPart, constraints: Constraints) -> list[Design]:
    storages = _storages(part, constraints)
    designs = [
        design
        for design in designs_of(shape, storages, masters_for(shape))
        if not design.why_not() and _has_ports(design, part)
    ]
    if not designs:
        raise UnsupportedError(f"no HLS design for this MoE block: {Design(shape).why_not()}")
    return designs


def _has_ports(design: Design, part: FpgaPart) -> bool:
    """Whether each master of striped weights has a port of its own; without one, striping gains nothing."""
    masters = design.masters_up + design.masters_down
    return masters == 2 or masters <= part.memory.ports


def masters_for(shape: BlockShape) -> list[tuple[int, int]]:
    """Numbers of masters to try, of the first and the second product."""
    rows = 2 if shape.gated else 1
    return list(dict.fromkeys([(1, 1), *((rows * down, down) for down in MASTERS)]))


def _cost(
    designs: Sequence[Design], part: FpgaPart, constraints: Constraints, loads: Sequence[int]
) -> list[CostedDesign]:
    clock, calibration = constraints.clock(part), constraints.calibration
    costed = []
    by_masters = sorted(designs, key=_masters_of)
    for _, alike in itertools.groupby(by_masters, key=_masters_of):
        first, *more = alike
        ports = connect(part, masters_of(first), clock, constraints.memory_share)
        expected, starved = (
            _Timing(counts, ports.loaders, calibration.stages) for counts in (loads, starving_loads(first.shape))
        )
        costed += [
            CostedDesign(assembled(design, part, clock, ports, expected.of(design), calibration), starved.of(design))
            for design in (first, *more)
        ]
    return costed


def assembled(
    design: Design,
    part: FpgaPart,
    clock_megahertz: float,
    ports: Ports,
    cycles: Cycles,
    calibration: Calibration = UNCORRECTED,
) -> MoeEstimate:
    """The estimate of a design whose cycles are known."""
    costs = dsps_of(design), memories_of(design), logic_luts(design)
    return Estimate.of(design, part, clock_megahertz, ports, cycles, *costs, calibration)


def resources_of(design: Design) -> Resources:
    return Resources.of(dsps_of(design), memories_of(design), logic_luts(design))


def _masters_of(design: Design) -> tuple[int, int]:
    return design.masters_up, design.masters_down


def _resources(design: Design, constraints: Constraints) -> Resources:
    return resources_of(design).corrected(constraints.calibration)


class _Timing:
    """Cycles of many designs. The router and the storage of arrays do not change the phases after routing, so these are
    counted once for all designs that differ in nothing else."""

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
    """The designs that no other one matches in everything, from fast to slow; the first of equals."""

    def speed(candidate: CostedDesign) -> int:
        return math.floor(math.log(candidate.estimate.cycles.total, _AS_FAST))

    front: list[CostedDesign] = []
    for candidate in sorted(
        candidates, key=lambda candidate: (speed(candidate), *_costs(candidate)[1:], _costs(candidate)[0])
    ):
        if not any(_as_cheap(other, candidate) for other in front):
            front.append(candidate)
    return sorted(front, key=_costs)


def _as_cheap(candidate: CostedDesign, other: CostedDesign) -> bool:
    *blocks, luts = _costs(candidate)[1:]
    *other_blocks, other_luts = _costs(other)[1:]
    return all(a <= b for a, b in zip(blocks, other_blocks, strict=True)) and luts <= other_luts * _AS_SMALL


def _choose(front: Sequence[CostedDesign], part: FpgaPart) -> CostedDesign:
    fastest = min(candidate.estimate.cycles.total for candidate in front)
    fast = [candidate for candidate in front if candidate.estimate.cycles.total <= fastest * _FAST_ENOUGH]
    return min(fast, key=lambda candidate: (fullest(candidate.estimate.resources, part), _costs(candidate)))


def fullest(resources: Resources, part: FpgaPart) -> float:
    """The share taken of the resource that is fullest."""
    return max(getattr(resources, name) / getattr(part, name) for name in RESOURCE_NAMES if getattr(part, name))


def _excess(resources: Resources, limits: Resources) -> dict[str, int]:
    """The amount by which a design is too large, by resource that is exceeded."""
    differences = {name: getattr(resources, name) - getattr(limits, name) for name in RESOURCE_NAMES}
    return {name: difference for name, difference in differences.items() if difference > 0}


def _nothing_fits(shape: BlockShape, part: FpgaPart, constraints: Constraints, designs: Sequence[Design]) -> str:
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


def _what_fits(shape: BlockShape, part: FpgaPart, constraints: Constraints) -> str:
    """Changes to the request that would fit, in words."""
    changes = []
    tokens = _most_tokens(shape, part, constraints)
    if tokens:
        changes.append(f"at most {tokens} tokens per call")
    if shape.weight_bits == 8 and _fits(dataclasses.replace(shape, weight_bits=4), part, constraints):
        changes.append("int4 weights")
    if not constraints.use_uram and _fits(shape, part, dataclasses.replace(constraints, use_uram=True)):
        changes.append("large arrays in UltraRAM")
    unlimited = Constraints(use_uram=constraints.use_uram, calibration=constraints.calibration)
    if constraints.limits(part) != unlimited.limits(part) and _fits(shape, part, unlimited):
        changes.append("the same part without limits of your own")
    larger = [other for other in PARTS[PARTS.index(part) + 1 :] if _fits(shape, other, unlimited)]
    if larger:
        changes.append(f"the part {larger[0].board}")
    return f"what would fit: {', or '.join(changes)}" if changes else "no part that moec knows is large enough"


def _fits(shape: BlockShape, part: FpgaPart, constraints: Constraints) -> bool:
    limits = constraints.limits(part)
    designs = designs_of(shape, _storages(part, constraints))
    return any(not design.why_not() and not _excess(_resources(design, constraints), limits) for design in designs)


def _storages(part: FpgaPart, constraints: Constraints) -> tuple[LargeArrays, ...]:
    return ("bram", "uram") if constraints.use_uram and part.uram else ("bram",)


def _most_tokens(shape: BlockShape, part: FpgaPart, constraints: Constraints) -> int:
    """The largest number of tokens that fits, or 0, by binary search: memories grow with tokens."""
    fits, too_many = 0, shape.tokens
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if _fits(dataclasses.replace(shape, tokens=middle), part, constraints):
            fits = middle
        else:
            too_many = middle
    return fits
