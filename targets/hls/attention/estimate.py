"""What an attention block costs on a part and how fast it is, without synthesis; rules are those of a MoE block.

Cycles follow from the loops. All tokens are normalised before the first tile is computed. A head takes three tiles of
the first product; while its queries come, they are scored, weighed and mixed side by side, at the pace of the slowest.
The next head's keys wait until all of its queries are scored. The last query leaves through all processes.
"""

from __future__ import annotations

import dataclasses
import math

from moec.targets.hls.attention.channels import KEY_WEIGHT_BITS, RECIPROCAL_BITS, attention_channels
from moec.targets.hls.attention.design import KEY, QUERY, AttentionDesign
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
from moec.targets.hls.hardware.ports import ATTENTION_MASTERS, connect
from moec.targets.hls.moe.channels import BEAT_BITS
from moec.targets.hls.moe.design import (
    BEAT_BYTES,
    INPUT_BITS,
    MOST_ACCUMULATOR_BITS,
    MULTIPLIER_BITS,
    PARAMETER_BYTES,
    RESULT_BITS,
)

_ARRAYS = 4
"""How many arrays of ``lanes`` x ``lanes`` products there are: projections, scores, values, output."""
_LOOPS_OF_TOKENS, _LOOPS_OF_QUERIES, _LOOPS_OF_RESULTS = 4, 5, 10
"""Pipelines one behind the other: until all tokens are normalised and kept; from a query's product to its scores; and
behind these to memory."""
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
    ports = connect(part, ATTENTION_MASTERS, clock_megahertz, memory_share)
    dsps, memories = attention_dsps(design), attention_memories(design)
    resources = Resources.of(dsps, memories, attention_luts(design))
    cycles = attention_cycles(design, design.shape.tokens, ports.loaders, calibration.stages)
    corrected = resources.corrected(calibration)
    return AttentionEstimate(design, part, clock_megahertz, ports, cycles, dsps, memories, corrected, calibration)


def attention_cycles(design: AttentionDesign, tokens: int, pace: MemoryPace, stages: int = 0) -> AttentionCycles:
    """The cycles of a call with ``tokens`` tokens, one at least. ``stages``: of each pipeline."""
    steps, heads = design.width // design.norm_lanes, design.shape.heads
    reads = max(steps, 2 * design.width / BEAT_BYTES * pace.cycles_per_beat)
    norm_beats = design.width * PARAMETER_BYTES / BEAT_BYTES
    start = pace.latency + max(design.width, norm_beats * pace.cycles_per_beat + pace.latency)
    normalize = start + tokens * reads + steps + _LOOPS_OF_TOKENS * stages
    weight_beats = design.width * design.head_width // BEAT_BYTES
    tile_beats = weight_beats + math.ceil(design.head_width * PARAMETER_BYTES / BEAT_BYTES)
    scored = math.ceil(tokens / design.lanes) * design.chunks
    per_token = design.chunks * design.width_chunks
    first, end = _run(design, tokens, tile_beats, max(per_token, scored), normalize, pace, stages)
    products = 3 * heads * tokens * per_token
    busy = {
        "products": 3 * tokens * per_token,
        "weights": 3 * (pace.latency + tile_beats * pace.cycles_per_beat),
        "scores": tokens * scored,
    }
    return AttentionCycles(
        normalize=round(normalize),
        first_weights=round(first - normalize),
        products=products,
        stalls=round(end - first - products),
        results=round(2 * scored + scored // design.chunks + per_token) + _LOOPS_OF_RESULTS * stages,
        beats=heads * (3 * tile_beats + weight_beats) + math.ceil(design.width * PARAMETER_BYTES / BEAT_BYTES),
        bound_by=max(busy, key=lambda name: busy[name]),
    )


def _run(
    design: AttentionDesign,
    tokens: int,
    tile_beats: int,
    per_query: int,
    normalized: float,
    pace: MemoryPace,
    stages: int,
) -> tuple[float, float]:
    """When the first tile starts, and when the last query is scored."""
    loader = Loader(design.fifos.weights, pace, stages)
    per_token = design.chunks * design.width_chunks
    first = start = max(normalized, loader.arrival(tile_beats, 0, normalized)) + stages
    room = 2 * design.fifos.rows // design.chunks * per_token  # rows of keys that channels hold meanwhile
    announced = scored = 0.0
    for tile in range(3 * design.shape.heads):
        if tile % 3 == KEY:
            start = max(start, scored - room)
        if tile % 3 == QUERY:
            scored = start + tokens * per_query + _LOOPS_OF_QUERIES * stages
        arrived = loader.arrival(tile_beats, announced, start)
        # As in a MoE block: two tiles behind the one whose items have left their channel.
        announced = max(announced, start + per_token * (tokens - 1 - design.fifos.items))
        done = start + tokens * per_token
        start = max(done, arrived) + stages
    return first, scored


def attention_dsps(design: AttentionDesign) -> dict[str, int]:
    """By process; those that multiply nothing are missing."""
    lanes = design.lanes
    array = lanes * lanes // PRODUCTS_PER_DSP
    rounding = lanes * multiplier_dsps(MOST_ACCUMULATOR_BITS, MULTIPLIER_BITS + 1)
    return {
        **norm_dsps(design.shape.width, design.norm_lanes),
        "product_up": array + rounding,
        "score_keys": array,
        "weigh_keys": lanes * multiplier_dsps(design.score_bits + 2, MULTIPLIER_BITS + 1),
        "mix_values": array,
        "scale_values": lanes * multiplier_dsps(design.mixed_bits, RECIPROCAL_BITS + 1),
        "product_down": array + rounding,
    }


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
        array_memory("scores", "weigh_keys", design.score_bits * lanes, design.key_groups, variable="kept"),
        array_memory("powers", "weigh_keys", TABLE_BITS, POWER_TABLE_WORDS, math.ceil(lanes / 2)),
        array_memory("values", "mix_values", chunk, places, lanes, variable="values"),
        array_memory("weights of keys", "mix_values", KEY_WEIGHT_BITS * lanes, design.key_groups, variable="kept"),
        array_memory("partial sums", "product_down", MOST_ACCUMULATOR_BITS * lanes, words, 1, "bram", "partial"),
        array_memory("weights", "product_down", BEAT_BITS, tile_words, 2 * banks, variable="weights"),
        parameter_memory("product_down", lanes, design.width_chunks),
        *channel_memories(attention_channels(design)),
        *(
            array_memory(f"adapter {name}", process, BEAT_BITS, bursts * BURST_BEATS)
            for name, (process, bursts) in _ADAPTERS.items()
        ),
    ]


def attention_luts(design: AttentionDesign) -> int:
    """All but memories, roughly: arrays, rounding, a divider, control, masters."""
    arrays = _ARRAYS * array_luts(design.lanes, design.lanes, MOST_ACCUMULATOR_BITS)
    # Of projections, weights, mixed values, results and sums.
    rounding = 5 * design.lanes * requantize_luts(MOST_ACCUMULATOR_BITS, RESULT_BITS)
    return arrays + rounding + RECIPROCAL_BITS**2 + CONTROL_LUTS + 4 * MASTER_LUTS
