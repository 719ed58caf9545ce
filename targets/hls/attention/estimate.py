"""Estimated costs and speed of an attention block on a part, without synthesis, by the rules of a MoE block.

Cycles follow from the loops:

1. All tokens are normalised before the first tile is computed.
2. If rows are products of latents, all latents are computed next (``latents_estimate.py``).
3. The first product computes, head of keys by head of keys, a tile of keys, one of values, and one of queries for each
   head that shares them.
4. The rotary embedding, scores, weights and weighted values of a query follow as a pipeline of processes, at the pace
   of the slowest. The next head's keys wait until all queries of this head are scored.
5. If all heads are normalised together, their keys and queries come first and wait for the sums of squares. They are
   scored while values come.
6. The last query leaves through all processes.
"""

from __future__ import annotations

import dataclasses
import functools
import math

from moec.targets.hls.attention.drains import Span, written
from moec.targets.hls.attention.latents_estimate import latent_beats, rows_taken
from moec.targets.hls.attention.resources import attention_dsps, attention_luts, attention_memories
from moec.targets.hls.design.attention import KEY, QUERY, VALUE, AttentionDesign
from moec.targets.hls.design.numbers import BEAT_BYTES, PARAMETER_BYTES
from moec.targets.hls.hardware.calibration import UNCORRECTED, Calibration
from moec.targets.hls.hardware.costs import Estimate, Resources
from moec.targets.hls.hardware.cycles import Loader, MemoryPace
from moec.targets.hls.hardware.parts import FpgaPart
from moec.targets.hls.hardware.ports import attention_masters, connect

_LOOPS_OF_TOKENS, _LOOPS_OF_QUERIES, _LOOPS_OF_SCORES = 4, 5, 3
"""Pipelines in series: until all tokens are normalised and stored; from a query's product to its scores; from these to
its weighted values."""
_LOOPS_OF_TURNS = 2
"""Additional pipelines of a query with a rotary embedding."""


@dataclasses.dataclass(frozen=True)
class AttentionCycles:
    """Cycles of the phases of a call, which follow each other."""

    normalize: int
    """From the start until all tokens are normalised."""
    latents: int
    """From there until all latents are computed; 0 without latents."""
    first_weights: int
    """From there until the first tile of weights has arrived."""
    products: int
    """Cycles in which the first array computes keys, values and queries."""
    stalls: int
    """Cycles in which it waits for weights, or for queries to be scored."""
    results: int
    """Cycles in which the last queries leave."""
    beats: int
    """Beats that read the weights of both matrices."""
    bound_by: str
    """The bottleneck: the process that a faster design has to speed up first."""

    @property
    def total(self) -> int:
        return self.normalize + self.latents + self.first_weights + self.products + self.stalls + self.results


AttentionEstimate = Estimate[AttentionDesign, AttentionCycles]


def estimate_attention(
    design: AttentionDesign,
    part: FpgaPart,
    clock_megahertz: float,
    memory_share: float = 1.0,
    calibration: Calibration = UNCORRECTED,
) -> AttentionEstimate:
    """The estimate of a design, for a call with as many tokens as it allows. ``memory_share``: of the peak
    bandwidth."""
    ports = connect(part, attention_masters(design.shape), clock_megahertz, memory_share)
    dsps, memories = attention_dsps(design), attention_memories(design)
    resources = Resources.of(dsps, memories, attention_luts(design))
    cycles = attention_cycles(design, design.shape.tokens, ports.loaders, calibration.stages)
    corrected = resources.corrected(calibration)
    return AttentionEstimate(design, part, clock_megahertz, ports, cycles, dsps, memories, corrected, calibration)


@functools.lru_cache(maxsize=1024)  # layers of a model are alike
def attention_cycles(
    design: AttentionDesign,
    tokens: int,
    pace: MemoryPace,
    stages: int = 0,
    past: int = 0,
    window: int = 0,
    caches: int = 1,
) -> AttentionCycles:
    """The cycles of a call with ``tokens`` tokens, at least one, after ``past`` others in the cache. ``stages``: of
    each pipeline. ``window``: keys that a token looks back; 0 for all. ``caches``: the number of caches that share a
    port, 2 for keys and values together."""
    past = min(past, window + design.lanes - 1) if window else past
    shape, steps = design.shape, design.width // design.norm_lanes
    reads = max(steps, 2 * design.width / BEAT_BYTES * pace.cycles_per_beat)
    norm_beats = design.width * PARAMETER_BYTES / BEAT_BYTES
    start = pace.latency + max(design.width, norm_beats * pace.cycles_per_beat + pace.latency)
    normalize = taken = start + tokens * reads + steps + _LOOPS_OF_TOKENS * stages
    loader = Loader(design.fifos.weights, pace, stages)
    if shape.latents:
        taken = rows_taken(design, tokens, loader, normalize, pace, stages)
    weight_beats = design.width * design.head_width // BEAT_BYTES
    groups = groups_of_queries(design, tokens, past, window)
    reads_cache = past * design.cache_row_beats * pace.cycles_per_beat
    # Values come after a query's scores and weights. Until then keys have a shared port to themselves.
    apart = _LOOPS_OF_SCORES * stages + 2 * groups[-1] * design.chunks
    reads_cache = max(reads_cache, caches * reads_cache - apart)
    held = max(past * design.chunks, reads_cache) + (pace.latency if past else 0)
    loads = _Loads(scores_of_head(design, tokens, past, window), held)
    run = _run_of_all_heads if shape.joint_norm else _run
    first, end, spans = run(design, tokens, loads, taken, pace, loader, stages)
    of_head = [KEY, VALUE, *[QUERY] * shape.sharing]
    of_products, tile_beats = sum(map(design.row_cycles, of_head)), sum(map(design.row_tile_beats, of_head))
    products = shape.key_heads * tokens * of_products
    busy = {
        "products": tokens * of_products,
        "weights": len(of_head) * pace.latency + tile_beats * pace.cycles_per_beat,
        "output": shape.sharing * tokens * design.item_cycles,
        "scores": shape.sharing * loads.scores,
        "cache": held,
    }
    return AttentionCycles(
        normalize=round(normalize),
        latents=round(taken - normalize),
        first_weights=round(first - taken),
        products=products,
        stalls=round(end - first - products),
        results=round(written(design, groups, spans, pace, stages) - end),
        beats=latent_beats(design)
        + shape.key_heads * tile_beats
        + shape.heads * weight_beats
        + math.ceil(design.width * PARAMETER_BYTES / BEAT_BYTES),
        bound_by=max(busy, key=lambda name: busy[name]),
    )


@dataclasses.dataclass(frozen=True)
class _Loads:
    """Cycles in which the queries of a head are scored (``scores``), and in which its cached keys arrive (``held``)."""

    scores: int
    held: float


def groups_of_queries(design: AttentionDesign, tokens: int, past: int = 0, window: int = 0) -> list[int]:
    """The number of groups of keys that each token's query is scored with. In a causal block, groups after the token
    are left out."""
    if not design.shape.causal:
        return [-(-(past + tokens) // design.lanes)] * tokens
    most = -(-(window - 1) // design.lanes) + 1 if window else design.key_groups
    return [min(position // design.lanes + 1, most) for position in range(past, past + tokens)]


def scores_of_head(design: AttentionDesign, tokens: int, past: int = 0, window: int = 0) -> int:
    """Steps in which the queries of a head are scored."""
    return design.chunks * sum(groups_of_queries(design, tokens, past, window))


def _run(
    design: AttentionDesign,
    tokens: int,
    loads: _Loads,
    normalized: float,
    pace: MemoryPace,
    loader: Loader,
    stages: int,
) -> tuple[float, float, list[Span]]:
    """The time at which the first tile starts, the time at which the last query is scored, and the spans in which each
    head's queries are scored. ``normalized``: the time at which the inputs of rows are complete."""
    first = start = max(normalized, loader.arrival(design.row_tile_beats(KEY), 0, normalized)) + stages
    rows_waiting = design.fifos.rows // design.chunks  # of each channel
    turn = design.turn_beats * pace.cycles_per_beat if design.shape.turned else 0.0
    announced = scored = held = turned = 0.0
    spans: list[Span] = []
    queries = max(design.row_cycles(QUERY) * tokens, loads.scores)
    loops = _LOOPS_OF_QUERIES + (_LOOPS_OF_TURNS if design.shape.turned else 0)
    for part, beats in _parts_and_next_beats(design):
        per_token = design.row_cycles(part)
        if part == KEY:
            held = scored + loads.held  # cached keys have arrived; new ones come after them
            start = max(start, held - 2 * rows_waiting * per_token)
        done = start + tokens * per_token
        if design.shape.turned and part != VALUE:
            turned = max(start, turned + pace.latency + stages) + tokens * turn
            done = max(done, turned - rows_waiting * turn)
        if part == QUERY:
            begin = max(start, held, scored - loops * stages, turned - queries)
            spans.append((begin, queries))
            scored = begin + queries + loops * stages
        arrived = loader.arrival(beats, announced, start)
        # As in a MoE block, a tile is announced when the items of the one two before it have left their channel.
        announced = max(announced, start + per_token * (tokens - 1 - design.fifos.items))
        start = _next_tile(done, arrived, beats - tokens * per_token, stages)
    return first, scored, spans


def _parts_and_next_beats(design: AttentionDesign) -> list[tuple[int, int]]:
    """The kind of each tile of the first product, and the beats of the tile after it."""
    parts = design.shape.parts_of_tiles()
    return [(part, design.row_tile_beats(following)) for part, following in zip(parts, [*parts[1:], KEY], strict=True)]


def _next_tile(done: float, arrived: float, missing: int, stages: int) -> float:
    """The time at which a tile starts after one that is ``done``. Its weights arrive while the one before is computed;
    ``missing`` beats that do not are taken in a loop of their own, until ``arrived``."""
    return done + stages if arrived <= done else max(done + stages + max(1, missing), arrived) + stages


def _run_of_all_heads(
    design: AttentionDesign,
    tokens: int,
    loads: _Loads,
    normalized: float,
    pace: MemoryPace,
    loader: Loader,
    stages: int,
) -> tuple[float, float, list[Span]]:
    """The same times as of :func:`_run`, if all heads are normalised together."""
    shape = design.shape
    first = start = max(normalized, loader.arrival(design.row_tile_beats(KEY), 0, normalized)) + stages
    # Cycles of the rows of values that channels can hold until queries are scored.
    room = 2 * design.fifos.rows // design.chunks * design.row_cycles(VALUE)
    is_prefetched = tokens * design.turn_beats <= design.fifos.beats
    rows = tokens * max(design.chunks, design.turn_beats * pace.cycles_per_beat)
    rows += 0 if is_prefetched else pace.latency
    queries, behind = max(rows, loads.scores), design.fifos.rows // design.chunks * design.item_cycles
    loops = _LOOPS_OF_QUERIES + _LOOPS_OF_TURNS
    # While queries are scored, the first of the next head's cached keys come, as many as their channel holds.
    held = max(0.0, loads.held - pace.latency - design.fifos.rows)
    announced = scored = multiplied = 0.0
    spans: list[Span] = []
    for place, (part, beats) in enumerate(_parts_and_next_beats(design)):
        per_token = design.row_cycles(part)
        begin = done = start + tokens * per_token
        if place == shape.turned_tiles:  # all keys and queries are there
            begin = max(done, start + 2 * tokens * shape.turned_tiles + rows)
        elif part == VALUE:
            done = max(done, scored - room)
            begin = max(done, scored - loops * stages + rows + held)
        if part == VALUE:
            # The next head's keys come while the second product still takes the queries that wait for it.
            multiplied = max(multiplied, begin) + shape.sharing * tokens * design.item_cycles
            scored = max(begin + shape.sharing * queries, multiplied - behind) + loops * stages
            spans += [(begin + head * queries, queries) for head in range(shape.sharing)]
        arrived = loader.arrival(beats, announced, start)
        announced = max(announced, start + per_token * (tokens - 1 - design.fifos.items))
        start = _next_tile(done, arrived, beats - tokens * per_token, stages)
    return first, scored, spans
