"""Cycles of one call of a MoE design, computed from its loops.

All loops have an initiation interval of 1 (their pragmas ask for it, and synthesis reports where it fails), so a loop
takes as many cycles as its trip count. Processes run at the same time and wait for each other:

1. Routing is serial: an expert's list is complete only after the last token. The router loads its weights, then takes
   tokens at the pace of the slowest of reading, multiplying and selecting.
2. Jobs (one hidden tile of one expert each) run one after the other. While the arrays compute one, the weights of the
   next arrive. A job starts when the one before is done and its own weights are there, whichever is later.
3. Loaders run ahead of the products by the depth of their channels, from the moment a job is announced.
4. Results leave at the end, after the last job.
5. A pipeline of ``stages`` hands each word on that many cycles later, and ends that many cycles after its last
   iteration. Only synthesis knows the number of stages; here it is the same for all loops.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

from moec.targets.hls.design.experts import BlockShape, Design
from moec.targets.hls.design.numbers import BEAT_BYTES, INPUT_BITS, PARAMETER_BYTES, RESULT_BITS, ROUTER_WEIGHT_BITS

ROUTER_BIAS_BYTES = 4
_LOOPS_OF_ROUTER, _LOOPS_OF_ROUTES = 3, 5
"""Pipelines in series: until the router has its weights, and from there until tokens are on their way to experts."""
_LOOPS_OF_RESULTS = {False: 4, True: 5}
"""Pipelines in series after the last job (its sums, the sums of tokens, beats, memory), without and with a residual."""


@dataclasses.dataclass(frozen=True)
class MemoryPace:
    """The pace at which a memory serves one master: a beat every ``cycles_per_beat`` cycles, the first beat of a loop
    ``latency`` cycles later."""

    cycles_per_beat: float = 1.0
    latency: int = 0

    def cycles(self, beats: int, iterations: int) -> float:
        """The cycles of a loop of ``iterations`` that transfers ``beats``."""
        return self.latency + max(iterations, (beats - 1) * self.cycles_per_beat + 1) if iterations else 0


@dataclasses.dataclass(frozen=True)
class Cycles:
    """Cycles of a call: of its phases, which follow each other, and of the weights alone."""

    route: int
    """From the start until the tokens of all experts are known."""
    first_weights: int
    """From there until the first tile has arrived."""
    products: int
    """Cycles in which the arrays compute."""
    stalls: int
    """Cycles in which the arrays wait for weights, or for each other."""
    results: int
    """Cycles that write tokens to memory at the end."""
    weights: int
    """Cycles that the busier loader needs for all tiles: the bound by memory alone."""
    beats: int
    """Beats that read the weights of both matrices."""

    @property
    def total(self) -> int:
        return self.route + self.first_weights + self.products + self.stalls + self.results

    @property
    def bound_by(self) -> str:
        """The bottleneck: the phase that a faster design has to speed up first."""
        candidates = {"products": self.products, "weights": self.weights, "router": self.route}
        return max(candidates, key=lambda name: candidates[name])


@dataclasses.dataclass(frozen=True)
class _TileJob:
    items: int
    cycles: int
    beats_up: int
    beats_down: int


def tokens_in(shape: BlockShape, loads: Sequence[int]) -> int:
    """The number of tokens of the call that led to these ``loads``: tokens of each expert, shared ones last.

    Raises ValueError where no call leads to them.
    """
    if len(loads) != shape.all_experts:
        raise ValueError(f"{len(loads)} loads; expected one for each of {shape.all_experts} experts")
    pairs = sum(loads[: shape.experts])
    tokens, rest = divmod(pairs, shape.slots) if shape.slots else (max(loads), pairs)
    if rest or any(load > tokens for load in loads) or any(load != tokens for load in loads[shape.experts :]):
        raise ValueError(f"loads {list(loads)} are none of tokens that go to {shape.slots} different experts each")
    return tokens


def select_steps(shape: BlockShape) -> int:
    """Cycles per token of the choice of experts: one pass over the experts, one more before it if they have groups, and
    one more if the scores of all of them are summed."""
    sums_all = shape.scoring == "softmax" and not shape.normalized
    return shape.experts * (1 + (shape.groups > 1) + sums_all)


def count_cycles(design: Design, loads: Sequence[int], pace: MemoryPace = MemoryPace(), stages: int = 0) -> Cycles:
    """The cycles of a call. ``loads``: tokens of each expert, shared ones last. Raises ValueError as
    :func:`tokens_in`."""
    tokens = tokens_in(design.shape, loads)
    route = route_cycles(design, tokens, pace, stages)
    if not tokens:
        return Cycles(route, 0, 0, 0, 0, 0, 0)
    jobs = list(_jobs(design, loads))
    first, end = _run(design, jobs, pace, stages)
    products = sum(job.cycles for job in jobs)
    chunks, result_bytes = tokens * design.output_chunks, design.lanes_out * RESULT_BITS // 8
    up, down = sum(job.beats_up for job in jobs), sum(job.beats_down for job in jobs)
    return Cycles(
        route=route,
        first_weights=round(first),
        products=products,
        stalls=round(end - first - products),
        # The process that writes starts with the call, so its latency has passed when the first result comes.
        results=round(dataclasses.replace(pace, latency=0).cycles(_beats(chunks * result_bytes), chunks))
        + _LOOPS_OF_RESULTS[design.shape.norm != "none"] * stages,
        weights=round(max(up, down) * pace.cycles_per_beat + len(jobs) * pace.latency),
        beats=_weight_beats(design, loads),
    )


def _beats(size: int) -> int:
    return -(-size // BEAT_BYTES)


def _router_start(design: Design, pace: MemoryPace) -> float:
    """Cycles until the router has its weights (``router_lanes`` per cycle), its biases and those of the choice, which
    come in one burst."""
    experts, weights = design.shape.experts, design.shape.experts * design.width
    biases = 2 if design.shape.biased_choice else 1
    beats = _beats(weights * ROUTER_WEIGHT_BITS // 8) + biases * _beats(experts * ROUTER_BIAS_BYTES)
    return pace.cycles(beats, weights // design.router_lanes + biases * experts)


def _stream_start(design: Design, pace: MemoryPace) -> float:
    """Cycles until normalised tokens can come: the parameters of their channels go first through the same master."""
    if design.shape.norm == "none":
        return 0
    beats = _beats(design.width * PARAMETER_BYTES)
    return pace.cycles(beats, beats) + pace.latency


def route_cycles(design: Design, tokens: int, pace: MemoryPace, stages: int = 0) -> int:
    """Cycles until all tokens have chosen their experts."""
    start = max(_router_start(design, pace), _stream_start(design, pace)) + _LOOPS_OF_ROUTER * stages
    if not tokens:
        return round(start)
    token_bytes = design.width * (INPUT_BITS if design.shape.norm == "none" else RESULT_BITS) // 8
    reads = token_bytes / BEAT_BYTES * pace.cycles_per_beat  # tokens are packed: a beat may hold parts of two
    steps = select_steps(design.shape)
    per_token = max(reads, design.router_turns * design.width // design.router_lanes, steps)
    return round(start + tokens * per_token + steps + design.shape.all_experts + _LOOPS_OF_ROUTES * stages)


def _jobs(design: Design, loads: Sequence[int]) -> Iterator[_TileJob]:
    """The jobs in the order of dispatch. Experts without tokens have none."""
    per_item = design.hidden_out_chunks * design.input_chunks
    up, down = design.job_beats_up, design.job_beats_down
    for load in filter(None, loads):
        tile = _TileJob(load, load * per_item, up, down)
        yield from [tile] * (design.tiles - 1)
        yield dataclasses.replace(tile, beats_down=down + design.result_beats_down)


def _weight_beats(design: Design, loads: Sequence[int]) -> int:
    """Beats of all masters that read weights and parameters."""
    up = design.parameter_beats_up + design.multiplier_beats_up + design.weight_beats_up
    tile = up + design.multiplier_beats_down + design.weight_beats_down
    return sum(1 for load in loads if load) * (design.tiles * tile + design.parameter_beats_down)


class Loader:
    """The loader of one matrix's tiles, which go through a channel of ``depth`` beats. Times count from the end of
    routing."""

    def __init__(self, depth: int, pace: MemoryPace, stages: int = 0) -> None:
        self._depth = depth
        self._stages = stages
        self._pace = pace
        self._free = 0.0

    def arrival(self, beats: int, announced: float, taken_from: float) -> float:
        """The time at which the last beat of a job arrives at the array, which takes one per cycle from
        ``taken_from`` on."""
        step = self._pace.cycles_per_beat
        latency = self._pace.latency + self._stages
        first = max(max(self._free, announced) + latency + 1, self._free + step)
        unhindered = first + (beats - 1) * step
        waits = beats > self._depth  # for room in the channel; a smaller job fits into it as a whole
        self._free = max(unhindered, taken_from + (beats - self._depth) * step) if waits else unhindered
        return max(self._free, taken_from + beats)


def _run(design: Design, jobs: Sequence[_TileJob], pace: MemoryPace, stages: int) -> tuple[float, float]:
    """The time at which the first job starts, and the time at which the second product finishes the last one."""
    per_item = jobs[0].cycles // jobs[0].items
    # The second product reads all hidden units of an item in its first steps, so it waits for the last of them.
    lag = per_item - design.hidden_in_chunks + stages
    # The first product runs ahead by the channel between them, and by its own pipeline.
    run_ahead = design.hidden_depth // design.hidden_out_chunks * per_item + stages
    load_up, load_down = (Loader(design.fifos.weights, pace, stages) for _ in range(2))
    first = start = load_up.arrival(jobs[0].beats_up, 0, 0) + stages
    start_down = max(load_down.arrival(jobs[0].beats_down, 0, 0) + stages, start + lag)
    announced = 0.0
    for job, following in itertools.pairwise(jobs):
        up = load_up.arrival(following.beats_up, announced, start)
        down = load_down.arrival(following.beats_down, announced, start_down)
        # A job is announced after the items of the job two before it, once their channel has room for them.
        announced = max(announced, start + per_item * (job.items - 1 - design.fifos.items))
        done = max(start + job.cycles, start_down + job.cycles - run_ahead) + stages
        done_down = start_down + job.cycles + stages
        # The rest of the next tile arrives in a loop of its own.
        start_down = max(done_down, down + stages if down > done_down - stages else 0)
        start = max(done, up + stages if up > done - stages else 0, start_down - run_ahead)
        start_down = max(start_down, start + lag)
    return first, start_down + jobs[-1].cycles + stages
