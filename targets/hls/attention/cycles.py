"""Cycles of a call of an attention block, by the rules of the kernel of experts, computed from its loops and channels.

1. All tokens are normalised before the first tile is computed.
2. If rows are products of latents, all latents are computed and stored before the first row.
3. The first product computes, head of keys by head of keys, a tile of keys, one of values, and one of queries for each
   head that shares them.
4. The rotary embedding, scores, weights and weighted values of a query follow as a pipeline of processes, at the pace
   of the slowest. The next head's keys wait until all queries of this head are scored.
5. If all heads are normalised together, their keys and queries come first and wait for the sums of squares. They are
   scored while values come.
6. The last query leaves through all processes. A word leaves a pipeline ``stages`` iterations after it was read. A
   pipeline that waits for input also holds the words inside; they come out when later words push them, or when the loop
   ends. A query takes few iterations, so all queries of a head with few tokens may be inside pipelines: the second
   product, which is slower than the processes before it, then gets them late. So these times are computed query by
   query.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from moec.targets.hls.attention.channels import attention_channels, projecting
from moec.targets.hls.design.attention import KEY, QUERY, VALUE, AttentionDesign, AttentionShape
from moec.targets.hls.design.numbers import BEAT_BYTES, PARAMETER_BYTES, RESULT_BITS
from moec.targets.hls.hardware.cycles import Array, Loader, MemoryPace, in_series, norm_start

Times = np.ndarray[Any, Any]
Span = tuple[float, float]


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


@functools.lru_cache(maxsize=256)
def pipelines(shape: AttentionShape, first: str, last: str) -> int:
    """The number of pipelines on the longest way from one process to another, whatever their sizes."""
    return in_series(attention_channels(AttentionDesign(shape)), first, last)


@dataclasses.dataclass(frozen=True)
class _Call:
    """A call with ``tokens`` after ``past`` others in the cache, of which a token sees ``window``, 0 for all."""

    design: AttentionDesign
    tokens: int
    pace: MemoryPace
    stages: int
    past: int
    window: int

    @functools.cached_property
    def groups(self) -> list[int]:
        """The number of groups of keys that each token's query is scored with."""
        return groups_of_queries(self.design, self.tokens, self.past, self.window)

    @property
    def scores(self) -> int:
        """Cycles in which the queries of a head are scored."""
        return self.design.chunks * sum(self.groups)

    @property
    def loops(self) -> int:
        """Pipelines in series from a query's product to its scores."""
        return self.loops_between(projecting(self.design), "score_keys")

    def loops_between(self, first: str, last: str) -> int:
        return pipelines(self.design.shape, first, last)

    def held(self, caches: int) -> float:
        """Cycles in which the cached keys of a head arrive, through a port of so many ``caches``."""
        reads = self.past * self.design.cache_row_beats * self.pace.cycles_per_beat
        # Values come after a query's scores and weights. Until then keys have a shared port to themselves.
        loops = self.loops_between("score_keys", "mix_values") - 1  # the pipeline that stores keys is behind them
        apart = loops * self.stages + 2 * self.groups[-1] * self.design.chunks
        reads = max(reads, caches * reads - apart)
        return max(self.past * self.design.chunks, reads) + (self.pace.latency if self.past else 0)


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
    call, shape = _Call(design, tokens, pace, stages, past, window), design.shape
    normalize = taken = _normalized(call)
    loader = Loader(design.fifos.weights, pace, stages)
    if shape.latents:
        taken = _latents_taken(call, loader, normalize)
    rows = Array(loader, design.fifos.items, design.row_tile_beats(KEY), taken)
    first, cached = rows.start, call.held(caches)
    end, spans = (_run_of_all_heads if shape.joint_norm else _run)(call, rows, cached)
    of_head = [KEY, VALUE, *[QUERY] * shape.sharing]
    of_products, tile_beats = sum(map(design.row_cycles, of_head)), sum(map(design.row_tile_beats, of_head))
    products = shape.key_heads * tokens * of_products
    busy = {
        "products": tokens * of_products,
        "weights": len(of_head) * pace.latency + tile_beats * pace.cycles_per_beat,
        "output": shape.sharing * tokens * design.item_cycles,
        "scores": shape.sharing * call.scores,
        "cache": cached,
    }
    return AttentionCycles(
        normalize=round(normalize),
        latents=round(taken - normalize),
        first_weights=round(first - taken),
        products=products,
        stalls=round(end - first - products),
        results=round(_written(call, spans) - end),
        beats=_latent_beats(design)
        + shape.key_heads * tile_beats
        + shape.heads * (design.width * design.head_width // BEAT_BYTES)
        + math.ceil(design.width * PARAMETER_BYTES / BEAT_BYTES),
        bound_by=max(busy, key=lambda name: busy[name]),
    )


def groups_of_queries(design: AttentionDesign, tokens: int, past: int = 0, window: int = 0) -> list[int]:
    """The number of groups of keys that each token's query is scored with. In a causal block, groups after the token
    are left out."""
    if not design.shape.causal:
        return [-(-(past + tokens) // design.lanes)] * tokens
    most = -(-(window - 1) // design.lanes) + 1 if window else design.key_groups
    return [min(position // design.lanes + 1, most) for position in range(past, past + tokens)]


def _normalized(call: _Call) -> float:
    """The time at which all tokens are normalised and stored."""
    design, steps = call.design, call.design.width // call.design.norm_lanes
    reads = max(steps, design.width * RESULT_BITS // 8 / BEAT_BYTES * call.pace.cycles_per_beat)
    start = norm_start(design.width, design.fifos.beats, call.pace)
    return start + call.tokens * reads + steps + call.loops_between("read_stream", "product_up") * call.stages


def _latent_tile_beats(design: AttentionDesign) -> int:
    parameters = -(-design.head_width * PARAMETER_BYTES // BEAT_BYTES)
    return design.width * design.head_width // BEAT_BYTES + parameters


def _latent_beats(design: AttentionDesign) -> int:
    """Beats of all weights of latents; 0 without latents."""
    return design.latent_norm_beats + design.latent_tiles * _latent_tile_beats(design)


def _latents_taken(call: _Call, loader: Loader, normalized: float) -> float:
    """The time at which the process that computes rows has taken all of its inputs. One master brings the weights of
    latents and then those of rows, so only its loading overlaps with the next phase."""
    design, tokens, beats = call.design, call.tokens, _latent_tile_beats(call.design)
    multipliers = call.pace.cycles(design.latent_norm_beats, design.latent_norm_beats)
    product = Array(loader, design.fifos.items, beats, normalized, multipliers)
    for _ in range(design.latent_tiles - 1):
        product.turn(product.start + tokens * design.item_cycles, tokens, design.item_cycles, beats)
    # The first chunk of each latent waits until the last one is in the sum of squares.
    waits = max(design.latent_chunks[:2])
    loops = 1 + call.loops_between("product_up", "product_rows")
    return product.start + tokens * design.item_cycles + tokens * design.row_chunks + waits + loops * call.stages


def _parts_and_next_beats(design: AttentionDesign) -> list[tuple[int, int]]:
    """The kind of each tile of the first product, and the beats of the tile after it."""
    parts = design.shape.parts_of_tiles()
    return [(part, design.row_tile_beats(following)) for part, following in zip(parts, [*parts[1:], KEY], strict=True)]


def _run(call: _Call, rows: Array, cached: float) -> tuple[float, list[Span]]:
    """The time at which the last query is scored, and the spans in which each head's queries are scored: when they
    start to leave the product of ``rows``, and for how long. ``cached``: cycles in which a head's cached keys
    arrive."""
    design, tokens, stages = call.design, call.tokens, call.stages
    rows_waiting = design.fifos.rows // design.chunks  # of each channel
    turn = design.turn_beats * call.pace.cycles_per_beat if design.shape.turned else 0.0
    scored = keys_there = turned = 0.0
    spans: list[Span] = []
    queries = max(design.row_cycles(QUERY) * tokens, call.scores)
    for part, next_beats in _parts_and_next_beats(design):
        per_token = design.row_cycles(part)
        if part == KEY:
            keys_there = scored + cached  # cached keys have arrived; new ones come after them
            rows.start = max(rows.start, keys_there - 2 * rows_waiting * per_token)
        done = rows.start + tokens * per_token
        if design.shape.turned and part != VALUE:
            turned = max(rows.start, turned + call.pace.latency + stages) + tokens * turn
            done = max(done, turned - rows_waiting * turn)
        if part == QUERY:
            begin = max(rows.start, keys_there, scored - call.loops * stages, turned - queries)
            spans.append((begin, queries))
            scored = begin + queries + call.loops * stages
        rows.turn(done, tokens, per_token, next_beats)
    return scored, spans


def _run_of_all_heads(call: _Call, rows: Array, cached: float) -> tuple[float, list[Span]]:
    """The same times as of :func:`_run`, if all heads are normalised together."""
    design, shape, tokens, stages = call.design, call.design.shape, call.tokens, call.stages
    # Cycles of the rows of values that channels can hold until queries are scored.
    room = 2 * design.fifos.rows // design.chunks * design.row_cycles(VALUE)
    is_prefetched = tokens * design.turn_beats <= design.fifos.beats
    read = tokens * max(design.chunks, design.turn_beats * call.pace.cycles_per_beat)
    read += 0 if is_prefetched else call.pace.latency
    queries, behind = max(read, call.scores), design.fifos.rows // design.chunks * design.item_cycles
    # While queries are scored, the first of the next head's cached keys come, as many as their channel holds.
    waiting = max(0.0, cached - call.pace.latency - design.fifos.rows)
    scored = multiplied = 0.0
    spans: list[Span] = []
    for place, (part, next_beats) in enumerate(_parts_and_next_beats(design)):
        per_token = design.row_cycles(part)
        begin = done = rows.start + tokens * per_token
        if place == shape.turned_tiles:  # all keys and queries are there
            begin = max(done, rows.start + 2 * tokens * shape.turned_tiles + read)
        elif part == VALUE:
            done = max(done, scored - room)
            begin = max(done, scored - call.loops * stages + read + waiting)
        if part == VALUE:
            # The next head's keys come while the second product still takes the queries that wait for it.
            multiplied = max(multiplied, begin) + shape.sharing * tokens * design.item_cycles
            scored = max(begin + shape.sharing * queries, multiplied - behind) + call.loops * stages
            spans += [(begin + head * queries, queries) for head in range(shape.sharing)]
        rows.turn(done, tokens, per_token, next_beats)
    return scored, spans


def _written(call: _Call, spans: Sequence[Span]) -> float:
    """The time at which the last token is written. Results are written through the port that also reads the tokens they
    are added to."""
    design, shape, stages = call.design, call.design.shape, call.stages
    tokens, heads, chunks = call.tokens, len(spans), design.chunks
    begins, lasts = np.array(spans).T
    meets = np.tile(call.groups, heads) * chunks
    places = (np.arange(tokens) + 1) * np.maximum(lasts / tokens, design.row_cycles(QUERY))[:, None]
    times = (begins[:, None] + np.minimum(places, lasts[:, None]) - chunks + stages).ravel()
    rows, of_keys = np.full(len(meets), chunks), shape.sharing * tokens
    # The pipelines that split, measure and rotate, and the one that joins cached keys.
    for loop in (*[tokens] * (1 + 2 * shape.turned), *[of_keys] * (shape.cached > 0)):
        times = _through(times, rows, loop, stages) - chunks  # the next pipeline begins with a row's first words
    scored = _through(times, meets, of_keys, stages)
    # A query is weighed while the next one of its head is read, and the last one after that.
    came, steps = (
        np.pad(array.reshape(-1, tokens), ((0, 0), (0, 1)), mode="edge") for array in (scored, meets // chunks)
    )
    weighed = _through(came.ravel(), steps.ravel(), tokens + 1, stages).reshape(came.shape)[:, 1:].ravel()
    mixed = _through(weighed, meets, of_keys, stages)
    attended = _through(mixed, rows, len(meets), stages).reshape(heads, tokens)
    return _multiplied(call, attended) + call.loops_between("product_down", "write_tokens") * stages


def _through(came: Times, steps: Times, of_loop: int, stages: int) -> Times:
    """The time at which the last word of each query leaves a pipeline that takes the query from ``came`` on, in
    ``steps`` iterations. The pipeline runs empty after each loop of ``of_loop`` queries."""
    loop = np.arange(len(came)) // of_loop
    ends = np.cumsum(steps) + loop * stages  # without any waiting
    begins = ends - steps
    starts = begins + np.maximum.accumulate(came - begins)
    leaves = ends + stages
    last = np.minimum((loop + 1) * of_loop, len(came)) - 1
    pushed_by = np.minimum(np.searchsorted(ends, leaves), last)
    return starts[pushed_by] + steps[pushed_by] + leaves - ends[pushed_by]


def _multiplied(call: _Call, attended: Times) -> float:
    """The time at which the second product is done. ``attended`` [heads, tokens]: the times at which the weighted
    values of each head arrive."""
    design, tokens, per_token = call.design, call.tokens, call.design.item_cycles
    beats = design.width * design.head_width // BEAT_BYTES
    down = Array(Loader(design.fifos.weights, call.pace, call.stages), design.fifos.items, beats)
    begin = end = 0.0
    for first, last in attended[:, [0, -1]].tolist():
        down.start = begin = max(down.start, first)
        end = max(begin + tokens * per_token, last + per_token)
        down.turn(end, tokens, per_token, beats)
    rows = tokens * design.width * RESULT_BITS / 8 / BEAT_BYTES
    moved = rows + max(0, rows - design.fifos.beats - call.stages)  # part of the residual has been read before
    return max(end, begin + moved * call.pace.cycles_per_beat)
