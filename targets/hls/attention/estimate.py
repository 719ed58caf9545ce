"""What an attention block costs on a part and how fast it is, without synthesis; rules are those of a MoE block.

Cycles follow from the loops. All tokens are normalised before the first tile is computed. A head of keys takes tiles of
the first product for these, its values, and the queries of each head that shares them; while queries come, they are
turned, scored, weighed and mixed side by side, at the pace of the slowest. The next head's keys wait until all of these
queries are scored. The last query leaves through all processes. Where all heads are normalised together, keys and
queries of all of them come first, and wait for their sums of squares; then they are scored while values come.
"""

from __future__ import annotations

import dataclasses
import functools
import math

from moec.targets.hls.attention.channels import (
    KEY_WEIGHT_BITS,
    RECIPROCAL_BITS,
    attention_channels,
    measuring,
    turning,
    weighing,
)
from moec.targets.hls.attention.design import KEY, QUERY, VALUE, AttentionDesign
from moec.targets.hls.attention.drains import Span, written
from moec.targets.hls.hardware.arithmetic import (
    CONTROL_LUTS,
    MASTER_LUTS,
    PRODUCTS_PER_DSP,
    array_luts,
    norm_dsps,
)
from moec.targets.hls.hardware.calibration import UNCORRECTED, Calibration
from moec.targets.hls.hardware.costs import Estimate, Resources
from moec.targets.hls.hardware.cycles import Loader, MemoryPace
from moec.targets.hls.hardware.logic import multiplier_dsps, requantize_luts
from moec.targets.hls.hardware.memories import (
    BURST_BEATS,
    INVERSE_ROOT_TABLE_WORDS,
    OUTSTANDING,
    POWER_TABLE_WORDS,
    TABLE_BITS,
    Memory,
    array_memory,
    channel_memories,
    norm_memories,
    parameter_memory,
)
from moec.targets.hls.hardware.parts import Part
from moec.targets.hls.hardware.ports import attention_masters, connect
from moec.targets.hls.moe.channels import BEAT_BITS, SCALE_BITS
from moec.targets.hls.moe.design import (
    BEAT_BYTES,
    INPUT_BITS,
    MOST_ACCUMULATOR_BITS,
    MULTIPLIER_BITS,
    PARAMETER_BYTES,
    RESULT_BITS,
    bits_for,
)

_ARRAYS = 4
"""How many arrays of ``lanes`` x ``lanes`` products there are: projections, scores, values, output."""
_LOOPS_OF_TOKENS, _LOOPS_OF_QUERIES, _LOOPS_OF_SCORES = 4, 5, 3
"""Pipelines one behind the other: until all tokens are normalised and kept; from a query's product to its scores; from
these to what it attends to."""
_SINK_BITS = 32
_LOOPS_OF_TURNS = 2
"""More of them where keys and queries are turned by their positions."""
_ADAPTERS = {
    "tokens": ("read_stream", OUTSTANDING["tokens"]),
    "residual": ("read_residual", OUTSTANDING["results"]),
    "up": ("load_up", OUTSTANDING["up"]),
    "down": ("load_down", OUTSTANDING["down"]),
    "results, writes": ("write_tokens", OUTSTANDING["results"]),
}
"""What masters keep on the chip: who uses each, and its bursts on their way."""


@dataclasses.dataclass(frozen=True)
class AttentionCycles:
    """Phases of a call, one after the other."""

    normalize: int
    """Until all tokens are normalised."""
    first_weights: int
    """Until the first tile has arrived, where that takes longer."""
    products: int
    """The first array computes keys, values and queries."""
    stalls: int
    """It waits for weights, or for queries to be scored."""
    results: int
    """The last query leaves."""
    beats: int
    """Beats that read the weights of both matrices."""
    bound_by: str
    """What a faster design would have to speed up first."""

    @property
    def total(self) -> int:
        return self.normalize + self.first_weights + self.products + self.stalls + self.results


AttentionEstimate = Estimate[AttentionDesign, AttentionCycles]


def estimate_attention(
    design: AttentionDesign,
    part: Part,
    clock_megahertz: float,
    memory_share: float = 1.0,
    calibration: Calibration = UNCORRECTED,
) -> AttentionEstimate:
    """The costs of a design, in a call with as many tokens as fit. ``memory_share``: of the peak bandwidth."""
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
    """The cycles of a call with ``tokens`` tokens, one at least, behind ``past`` others that a cache holds. ``stages``:
    of each pipeline. ``window``: keys that a token looks back; 0 where that has no end. ``caches``: that share a port,
    2 where keys and values do."""
    past = min(past, window + design.lanes - 1) if window else past
    shape, steps = design.shape, design.width // design.norm_lanes
    reads = max(steps, 2 * design.width / BEAT_BYTES * pace.cycles_per_beat)
    norm_beats = design.width * PARAMETER_BYTES / BEAT_BYTES
    start = pace.latency + max(design.width, norm_beats * pace.cycles_per_beat + pace.latency)
    normalize = start + tokens * reads + steps + _LOOPS_OF_TOKENS * stages
    weight_beats = design.width * design.head_width // BEAT_BYTES
    tile_beats = weight_beats + math.ceil(design.head_width * PARAMETER_BYTES / BEAT_BYTES)
    per_token = design.chunks * design.width_chunks
    groups = groups_of_queries(design, tokens, past, window)
    reads_cache = past * design.cache_row_beats * pace.cycles_per_beat
    # Values follow keys behind a query's scores and weights; until then these have a port alone that both come through.
    apart = _LOOPS_OF_SCORES * stages + 2 * groups[-1] * design.chunks
    reads_cache = max(reads_cache, caches * reads_cache - apart)
    held = max(past * design.chunks, reads_cache) + (pace.latency if past else 0)
    loads = _Loads(tile_beats, scores_of_head(design, tokens, past, window), held)
    run = _run_of_all_heads if shape.joint_norm else _run
    first, end, spans = run(design, tokens, loads, normalize, pace, stages)
    products = shape.tiles * tokens * per_token
    per_head = 2 + shape.sharing
    busy = {
        "products": per_head * tokens * per_token,
        "weights": per_head * (pace.latency + tile_beats * pace.cycles_per_beat),
        "scores": shape.sharing * loads.scores,
        "cache": held,
    }
    return AttentionCycles(
        normalize=round(normalize),
        first_weights=round(first - normalize),
        products=products,
        stalls=round(end - first - products),
        results=round(written(design, groups, spans, pace, stages) - end),
        beats=shape.tiles * tile_beats
        + shape.heads * weight_beats
        + math.ceil(design.width * PARAMETER_BYTES / BEAT_BYTES),
        bound_by=max(busy, key=lambda name: busy[name]),
    )


@dataclasses.dataclass(frozen=True)
class _Loads:
    """``tile_beats``: weights of a tile. Cycles that queries of a head meet keys in (``scores``), and that its ``held``
    keys take to arrive."""

    tile_beats: int
    scores: int
    held: float


def groups_of_queries(design: AttentionDesign, tokens: int, past: int = 0, window: int = 0) -> list[int]:
    """How many groups of keys the query of each token meets: none behind it where that is ruled out."""
    if not design.shape.causal:
        return [-(-(past + tokens) // design.lanes)] * tokens
    most = -(-(window - 1) // design.lanes) + 1 if window else design.key_groups
    return [min(position // design.lanes + 1, most) for position in range(past, past + tokens)]


def scores_of_head(design: AttentionDesign, tokens: int, past: int = 0, window: int = 0) -> int:
    """Steps in which the queries of a head meet keys."""
    return design.chunks * sum(groups_of_queries(design, tokens, past, window))


def _run(
    design: AttentionDesign,
    tokens: int,
    loads: _Loads,
    normalized: float,
    pace: MemoryPace,
    stages: int,
) -> tuple[float, float, list[Span]]:
    """When the first tile starts, when the last query is scored, and when those of each head come."""
    loader = Loader(design.fifos.weights, pace, stages)
    per_token = design.chunks * design.width_chunks
    first = start = max(normalized, loader.arrival(loads.tile_beats, 0, normalized)) + stages
    rows_waiting = design.fifos.rows // design.chunks  # of each channel
    turn = design.turn_beats * pace.cycles_per_beat if design.shape.turned else 0.0
    announced = scored = held = turned = 0.0
    spans: list[Span] = []
    queries = max(per_token * tokens, loads.scores)
    loops = _LOOPS_OF_QUERIES + (_LOOPS_OF_TURNS if design.shape.turned else 0)
    for part in design.shape.parts_of_tiles():
        if part == KEY:
            held = scored + loads.held  # these keys are there, and behind them come new ones
            start = max(start, held - 2 * rows_waiting * per_token)
        done = start + tokens * per_token
        if design.shape.turned and part != VALUE:
            turned = max(start, turned + pace.latency + stages) + tokens * turn
            done = max(done, turned - rows_waiting * turn)
        if part == QUERY:
            begin = max(start, held, scored - loops * stages, turned - queries)
            spans.append((begin, queries))
            scored = begin + queries + loops * stages
        arrived = loader.arrival(loads.tile_beats, announced, start)
        # As in a MoE block: two tiles behind the one whose items have left their channel.
        announced = max(announced, start + per_token * (tokens - 1 - design.fifos.items))
        start = _next_tile(done, arrived, loads.tile_beats - tokens * per_token, stages)
    return first, scored, spans


def _next_tile(done: float, arrived: float, missing: int, stages: int) -> float:
    """When a tile starts behind one that is ``done``. Its weights have ``arrived`` while that was computed, but for
    those ``missing``, which are taken in a loop of their own."""
    return done + stages if arrived <= done else max(done + stages + max(1, missing), arrived) + stages


def _run_of_all_heads(
    design: AttentionDesign, tokens: int, loads: _Loads, normalized: float, pace: MemoryPace, stages: int
) -> tuple[float, float, list[Span]]:
    """As :func:`_run`, where all heads are normalised together."""
    shape, loader = design.shape, Loader(design.fifos.weights, pace, stages)
    per_token = design.chunks * design.width_chunks
    first = start = max(normalized, loader.arrival(loads.tile_beats, 0, normalized)) + stages
    room = 2 * design.fifos.rows // design.chunks * per_token  # rows of values that channels hold meanwhile
    is_prefetched = tokens * design.turn_beats <= design.fifos.beats
    rows = tokens * max(design.chunks, design.turn_beats * pace.cycles_per_beat)
    rows += 0 if is_prefetched else pace.latency
    queries, behind = max(rows, loads.scores), design.fifos.rows // design.chunks * per_token
    loops = _LOOPS_OF_QUERIES + _LOOPS_OF_TURNS
    # While queries are scored, the first of the next head's keys come, as many as their channel holds.
    held = max(0.0, loads.held - pace.latency - design.fifos.rows)
    announced = scored = multiplied = 0.0
    spans: list[Span] = []
    for place, part in enumerate(shape.parts_of_tiles()):
        begin = done = start + tokens * per_token
        if place == shape.turned_tiles:  # all keys and queries are there
            begin = max(done, start + 2 * tokens * shape.turned_tiles + rows)
        elif part == VALUE:
            done = max(done, scored - room)
            begin = max(done, scored - loops * stages + rows + held)
        if part == VALUE:
            # The next head's keys come while the second product still takes those queries that wait in front of it.
            multiplied = max(multiplied, begin) + shape.sharing * tokens * per_token
            scored = max(begin + shape.sharing * queries, multiplied - behind) + loops * stages
            spans += [(begin + head * queries, queries) for head in range(shape.sharing)]
        arrived = loader.arrival(loads.tile_beats, announced, start)
        announced = max(announced, start + per_token * (tokens - 1 - design.fifos.items))
        start = _next_tile(done, arrived, loads.tile_beats - tokens * per_token, stages)
    return first, scored, spans


def attention_dsps(design: AttentionDesign) -> dict[str, int]:
    """By process; those that multiply nothing are missing."""
    lanes = design.lanes
    array = lanes * lanes // PRODUCTS_PER_DSP
    rounding = lanes * multiplier_dsps(MOST_ACCUMULATOR_BITS, MULTIPLIER_BITS + 1)
    return {
        **norm_dsps(design.shape.width, design.norm_lanes),
        "product_up": array + rounding,
        **(_turn_dsps(design) if design.shape.turned else {}),
        "score_keys": array,
        weighing(design): (lanes + design.shape.sinks) * multiplier_dsps(design.score_bits + 2, MULTIPLIER_BITS + 1),
        "mix_values": array,
        "scale_values": lanes * multiplier_dsps(design.mixed_bits, RECIPROCAL_BITS + 1),
        "product_down": array + rounding,
    }


def _turn_dsps(design: AttentionDesign) -> dict[str, int]:
    """A channel takes two products with 16 bits to be turned; to be normalised, what channels of a token take."""
    turn = 2 * design.lanes * multiplier_dsps(RESULT_BITS, RESULT_BITS)
    if not design.shape.head_norm:
        return {"turn_heads": turn}
    of_rows = norm_dsps(design.shape.norm_width, design.lanes)
    return {measuring(design): of_rows["measure_tokens"], "turn_heads": turn + of_rows["normalize_tokens"]}


def attention_memories(design: AttentionDesign) -> list[Memory]:
    """All of them: arrays, channels, adapters."""
    shape, lanes = design.shape, design.lanes
    words, places = shape.tokens * design.width_chunks, design.key_groups * design.chunks
    chunk, banks = INPUT_BITS * lanes, lanes * lanes * INPUT_BITS // BEAT_BITS
    tile_words = design.chunks * design.width_chunks
    return [
        *norm_memories(design.width, design.norm_lanes),
        array_memory("tokens", "product_up", chunk, words, 1, "bram", "rows"),
        array_memory("weights", "product_up", BEAT_BITS, tile_words, 2 * banks, variable="weights"),
        parameter_memory("product_up", lanes, design.chunks),
        array_memory("keys", "score_keys", chunk, places, lanes, variable="keys"),
        array_memory("scores", weighing(design), design.score_bits * lanes, design.key_groups, variable="kept"),
        *([array_memory("sinks", weighing(design), _SINK_BITS, shape.heads, variable="sinks")] if shape.sinks else ()),
        array_memory("powers", weighing(design), TABLE_BITS, POWER_TABLE_WORDS, power_copies(design)),
        array_memory("values", "mix_values", chunk, places, lanes, variable="values"),
        array_memory("weights of keys", "mix_values", KEY_WEIGHT_BITS * lanes, design.key_groups, variable="kept"),
        array_memory("partial sums", "product_down", MOST_ACCUMULATOR_BITS * lanes, words, 1, "bram", "partial"),
        array_memory("weights", "product_down", BEAT_BITS, tile_words, 2 * banks, variable="weights"),
        parameter_memory("product_down", lanes, design.width_chunks),
        *(_turn_memories(design) if shape.turned else ()),
        *(_cache_adapters() if shape.cached else ()),
        *channel_memories(attention_channels(design)),
        *(
            array_memory(f"adapter {name}", process, BEAT_BITS, bursts * BURST_BEATS)
            for name, (process, bursts) in _ADAPTERS.items()
        ),
    ]


def power_copies(design: AttentionDesign) -> int:
    """Of the table of powers: a memory has two ports, so two lanes share one; a sink has one of its own."""
    return -(-design.lanes // 2) + design.shape.sinks


def _turn_memories(design: AttentionDesign) -> list[Memory]:
    shape, bits = design.shape, RESULT_BITS * design.lanes
    roots = array_memory("inverse roots", measuring(design), MULTIPLIER_BITS, INVERSE_ROOT_TABLE_WORDS)
    multipliers = (shape.turned_tiles if shape.joint_norm else 2) * design.chunks
    return [
        *([roots] if shape.head_norm else []),
        *(_memories_of_all_heads(design) if shape.joint_norm else ()),
        array_memory("multipliers", "turn_heads", bits, multipliers, variable="multipliers"),
        array_memory("adapter turns", turning(design), BEAT_BITS, OUTSTANDING["tokens"] * BURST_BEATS),
    ]


def _memories_of_all_heads(design: AttentionDesign) -> list[Memory]:
    """Keys and queries until they are measured, and their measures."""
    shape, process = design.shape, measuring(design)
    bits = bits_for(shape.norm_width)
    sums, measure = 2 * RESULT_BITS - 1 + bits, RESULT_BITS + bits + MULTIPLIER_BITS + SCALE_BITS
    return [
        array_memory("keys and queries", process, INPUT_BITS * design.lanes, design.kept_chunks, 1, "bram", "kept"),
        array_memory("sums of squares", process, sums, shape.turned_tiles * shape.tokens, variable="of_rows"),
        array_memory("measures", process, measure, 2 * shape.tokens, variable="of_parts"),
    ]


def _cache_adapters() -> list[Memory]:
    words = OUTSTANDING["results"] * BURST_BEATS
    return [
        array_memory(f"adapter {name}", process, BEAT_BITS, words)
        for name, process in (
            ("keys", "read_cache"),
            ("values", "read_cache 2"),
            ("keys, writes", "write_cache"),
            ("values, writes", "write_cache 2"),
        )
    ]


def attention_luts(design: AttentionDesign) -> int:
    """All but memories, roughly: arrays, rounding, a divider, control, masters."""
    arrays = _ARRAYS * array_luts(design.lanes, design.lanes, MOST_ACCUMULATOR_BITS)
    # Of projections, weights, mixed values, results and sums.
    rounding = 5 * design.lanes * requantize_luts(MOST_ACCUMULATOR_BITS, RESULT_BITS)
    if design.shape.turned:
        rounding += design.lanes * requantize_luts(2 * RESULT_BITS + 1, INPUT_BITS)
    masters = len(attention_masters(design.shape)) * MASTER_LUTS
    return arrays + rounding + RECIPROCAL_BITS**2 + CONTROL_LUTS + masters
