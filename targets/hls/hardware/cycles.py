"""Cycles of one call of the kernel of experts and linear layers, computed from its loops and its channels.

All loops have an initiation interval of 1 (their pragmas ask for it, and synthesis reports where it fails), so a loop
takes as many cycles as its trip count. Processes run at the same time and wait for each other:

1. Routing is serial: an expert's list is complete only after the last token. The router loads its weights, then takes
   tokens at the pace of the slowest of reading, multiplying and selecting.
2. Jobs (one hidden tile of one expert each) run one after the other. While the arrays compute one, the weights of the
   next arrive. A job starts when the one before is done and its own weights are there, whichever is later.
3. Loaders run ahead of the products by the depth of their channels, from the moment a job is announced.
4. Results leave at the end, after the last job.
5. A pipeline of ``stages`` hands each word on that many cycles later, and ends that many cycles after its last
   iteration. Only synthesis knows the number of stages; here it is the same for all loops. The table of channels says
   how many pipelines a word passes.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence

from moec.targets.hls.design.channels import PROCESSES, Channel, channels_of
from moec.targets.hls.design.experts import BlockShape, Design
from moec.targets.hls.design.numbers import BEAT_BYTES, INPUT_BITS, PARAMETER_BYTES, RESULT_BITS, ROUTER_WEIGHT_BITS

ROUTER_BIAS_BYTES = 4
_PIPELINES = {"dispatch": 3, "combine": 2, "score_keys": 2}
"""Processes that hand words from one pipeline to another. ``dispatch`` fills lists, finds busy experts, and sends jobs;
``combine`` sums, and then sends; ``score_keys`` stores keys, and then reads queries."""


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


def in_series(channels: Iterable[Channel], first: str, last: str) -> int:
    """The number of pipelines on the longest way from one process to another, including theirs."""
    places = {first: _PIPELINES.get(first, 1)}
    for channel in sorted(channels, key=lambda channel: PROCESSES.index(channel.producer)):
        if channel.producer in places:
            place = places[channel.producer] + _PIPELINES.get(channel.consumer, 1)
            places[channel.consumer] = max(place, places.get(channel.consumer, 0))
    return places[last]


@functools.lru_cache(maxsize=256)
def pipelines(shape: BlockShape, first: str, last: str) -> int:
    """:func:`in_series` in the kernel of experts, whatever its sizes."""
    return in_series(channels_of(Design(shape)), first, last)


class Loader:
    """The loader of one matrix's tiles, which go through a channel of ``depth`` beats."""

    def __init__(self, depth: int, pace: MemoryPace, stages: int = 0) -> None:
        self.stages = stages
        self._depth = depth
        self._pace = pace
        self._free = 0.0

    def arrival(self, beats: int, announced: float, taken_from: float) -> float:
        """The time at which the last beat of a job arrives at the array, which takes one per cycle from
        ``taken_from`` on."""
        step = self._pace.cycles_per_beat
        latency = self._pace.latency + self.stages
        first = max(max(self._free, announced) + latency + 1, self._free + step)
        unhindered = first + (beats - 1) * step
        waits = beats > self._depth  # for room in the channel; a smaller job fits into it as a whole
        self._free = max(unhindered, taken_from + (beats - self._depth) * step) if waits else unhindered
        return max(self._free, taken_from + beats)


class Array:
    """An array of products that computes tile after tile. While it computes one, its loader brings the next.

    ``items``: the depth of the channel of its tokens. Times count from a common start.
    """

    def __init__(self, loader: Loader, items: int, beats: int, ready: float = 0.0, announced: float = 0.0) -> None:
        """An array whose inputs are ``ready``, and whose first tile, of so many ``beats``, has been ``announced``."""
        self._loader = loader
        self._items = items
        self._announced = 0.0
        self.start = max(ready, loader.arrival(beats, announced, ready)) + loader.stages
        """The time at which the current tile's first item is computed."""

    def turn(self, done: float, tokens: int, per_token: int, beats: int) -> None:
        """Turn to the next tile, of so many ``beats``, from one of ``tokens``, whose last step is at ``done``. Beats
        that do not arrive during its steps are taken in a loop of their own."""
        stages = self._loader.stages
        arrived = self._loader.arrival(beats, self._announced, self.start)
        # A tile is announced after the items of the one two before it, once their channel has room for them.
        self._announced = max(self._announced, self.start + per_token * (tokens - 1 - self._items))
        missing = max(1, beats - tokens * per_token)
        self.start = done + stages if arrived <= done else max(done + stages + missing, arrived) + stages


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
    products = sum(items for items, _ in jobs) * design.item_cycles
    chunks, result_bytes = tokens * design.output_chunks, design.lanes_out * RESULT_BITS // 8
    up, down = len(jobs) * design.job_beats_up, sum(beats for _, beats in jobs)
    # The process that writes starts with the call, so its latency has passed when the first result comes.
    results = dataclasses.replace(pace, latency=0).cycles(_beats(chunks * result_bytes), chunks)
    return Cycles(
        route=route,
        first_weights=round(first),
        products=products,
        stalls=round(end - first - products),
        results=round(results) + pipelines(design.shape, "combine", "write_tokens") * stages,
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


def norm_start(width: int, waiting: int, pace: MemoryPace) -> float:
    """Cycles until tokens of ``width`` channels can be normalised. The parameters of channels come first through the
    same master and are taken one by one. The last ``waiting`` beats of them wait in their channel while the first token
    is read."""
    beats = width * PARAMETER_BYTES / BEAT_BYTES
    taken = width - waiting * BEAT_BYTES // PARAMETER_BYTES
    return pace.latency + max(width, pace.latency + taken, pace.latency + beats * pace.cycles_per_beat)


def route_cycles(design: Design, tokens: int, pace: MemoryPace, stages: int = 0) -> int:
    """Cycles until all tokens have chosen their experts. A word can be read one cycle behind its arrival."""
    shape, has_norm = design.shape, design.shape.norm != "none"
    start = _router_start(design, pace) + pipelines(shape, "read_router", "router") * (stages + 1)
    if has_norm:
        before = pipelines(shape, "read_inputs", "router") - 1
        start = max(start, norm_start(design.width, design.fifos.beats, pace) + before * (stages + 1))
    if not tokens:
        return round(start)
    token_bytes = design.width * (RESULT_BITS if has_norm else INPUT_BITS) // 8
    reads = token_bytes / BEAT_BYTES * pace.cycles_per_beat  # tokens are packed: a beat may hold parts of two
    steps = select_steps(shape)
    per_token = max(reads, design.router_turns * design.width // design.router_lanes, steps)
    loops = pipelines(shape, "router", "dispatch")
    return round(start + tokens * per_token + steps + shape.all_experts + loops * (stages + 1))


def _jobs(design: Design, loads: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The jobs in the order of dispatch: the tokens of each, and the beats of its second matrix. Experts without tokens
    have none."""
    beats = design.job_beats_down
    for load in filter(None, loads):
        yield from [(load, beats)] * (design.tiles - 1)
        yield load, beats + design.result_beats_down


def _weight_beats(design: Design, loads: Sequence[int]) -> int:
    """Beats of all masters that read weights and parameters."""
    up = design.parameter_beats_up + design.multiplier_beats_up + design.weight_beats_up
    tile = up + design.multiplier_beats_down + design.weight_beats_down
    return sum(1 for load in loads if load) * (design.tiles * tile + design.parameter_beats_down)


def _run(design: Design, jobs: Sequence[tuple[int, int]], pace: MemoryPace, stages: int) -> tuple[float, float]:
    """The time at which the first job starts, and the time at which the second product finishes the last one. Times
    count from the end of routing."""
    per_item = design.item_cycles
    # The second product reads all hidden units of an item in its first steps, so it waits for the last of them.
    lag = per_item - design.hidden_in_chunks + stages
    # The first product runs ahead by the channel between them, and by its own pipeline.
    run_ahead = design.hidden_depth // design.hidden_out_chunks * per_item + stages
    up, down = (
        Array(Loader(design.fifos.weights, pace, stages), design.fifos.items, beats)
        for beats in (design.job_beats_up, jobs[0][1])
    )
    first = up.start
    down.start = max(down.start, up.start + lag)
    for (items, _), (_, beats) in itertools.pairwise(jobs):
        done = max(up.start, down.start - run_ahead) + items * per_item
        down.turn(down.start + items * per_item, items, per_item, beats)
        up.turn(done, items, per_item, design.job_beats_up)
        up.start = max(up.start, down.start - run_ahead)
        down.start = max(down.start, up.start + lag)
    return first, down.start + jobs[-1][0] * per_item + stages
