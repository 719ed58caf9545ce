"""Estimated costs of an attention block on a part, without synthesis, by the rules of a MoE block."""

from __future__ import annotations

from moec.targets.hls.attention.channels import (
    KEY_WEIGHT_BITS,
    RECIPROCAL_BITS,
    attention_channels,
    keeping,
    loading,
    measuring,
    projecting,
    turning,
    weighing,
)
from moec.targets.hls.attention.cycles import AttentionCycles, attention_cycles
from moec.targets.hls.design.attention import AttentionDesign
from moec.targets.hls.design.channels import BEAT_BITS, SCALE_BITS
from moec.targets.hls.design.numbers import INPUT_BITS, MOST_ACCUMULATOR_BITS, MULTIPLIER_BITS, RESULT_BITS, bits_for
from moec.targets.hls.hardware.arithmetic import (
    CONTROL_LUTS,
    MASTER_LUTS,
    PRODUCTS_PER_DSP,
    array_luts,
    norm_dsps,
)
from moec.targets.hls.hardware.calibration import UNCORRECTED, Calibration
from moec.targets.hls.hardware.costs import Estimate
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
from moec.targets.hls.hardware.parts import FpgaPart
from moec.targets.hls.hardware.ports import attention_masters, connect

_ARRAYS = 4
"""Arrays of ``lanes`` x ``lanes`` products: projections, scores, values, output. Latents need one more."""
_SINK_BITS = 32
_ADAPTERS = {
    "tokens": ("read_stream", OUTSTANDING["tokens"]),
    "residual": ("read_residual", OUTSTANDING["results"]),
    "down": ("load_down", OUTSTANDING["down"]),
    "results, writes": ("write_tokens", OUTSTANDING["results"]),
}
"""The processes of the AXI masters, and the outstanding bursts that each buffers."""


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
    cycles = attention_cycles(design, design.shape.tokens, ports.loaders, calibration.stages)
    costs = attention_dsps(design), attention_memories(design), attention_luts(design)
    return Estimate.of(design, part, clock_megahertz, ports, cycles, *costs, calibration)


def attention_dsps(design: AttentionDesign) -> dict[str, int]:
    """DSPs by process, without processes that multiply nothing."""
    lanes = design.lanes
    array = lanes * lanes // PRODUCTS_PER_DSP
    rounding = lanes * multiplier_dsps(MOST_ACCUMULATOR_BITS, MULTIPLIER_BITS + 1)
    return {
        **norm_dsps(design.shape.width, design.norm_lanes),
        **(_latent_dsps(design, array + rounding) if design.shape.latents else {}),
        projecting(design): array + rounding,
        **(_turn_dsps(design) if design.shape.turned else {}),
        "score_keys": array,
        weighing(design): (lanes + design.shape.sinks) * multiplier_dsps(design.score_bits + 2, MULTIPLIER_BITS + 1),
        "mix_values": array,
        "scale_values": lanes * multiplier_dsps(design.mixed_bits, RECIPROCAL_BITS + 1),
        "product_down": array + rounding,
    }


def _latent_dsps(design: AttentionDesign, of_product: int) -> dict[str, int]:
    """DSPs by process. ``of_product``: of the product that computes latents, an array of its own."""
    assert design.shape.latents is not None
    of_norm = norm_dsps(design.shape.latents.norm_width, design.lanes)
    return {
        "product_up": of_product,
        keeping(design): of_norm["measure_tokens"],
        "normalize_latents": of_norm["normalize_tokens"],
    }


def _turn_dsps(design: AttentionDesign) -> dict[str, int]:
    """DSPs of rotary embeddings, two products of 16 bits per channel, and of the norms of keys and queries, like those
    of a token's channels."""
    turn = 2 * design.lanes * multiplier_dsps(RESULT_BITS, RESULT_BITS)
    if not design.shape.head_norm:
        return {"turn_heads": turn}
    of_rows = norm_dsps(design.shape.norm_width, design.lanes)
    return {measuring(design): of_rows["measure_tokens"], "turn_heads": turn + of_rows["normalize_tokens"]}


def attention_memories(design: AttentionDesign) -> list[Memory]:
    """All memories of a design: arrays, channels and adapters."""
    shape, lanes = design.shape, design.lanes
    words, places = shape.tokens * design.width_chunks, design.key_groups * design.chunks
    chunk, banks = INPUT_BITS * lanes, lanes * lanes * INPUT_BITS // BEAT_BITS
    tile_words = design.chunks * design.width_chunks
    return [
        *norm_memories(design.width, design.norm_lanes),
        *(_latent_memories(design) if shape.latents else ()),
        *_memories_of_products(design),
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


def _memories_of_products(design: AttentionDesign) -> list[Memory]:
    """The memories of the product that makes rows, and of the one that makes latents."""
    lanes, chunk = design.lanes, INPUT_BITS * design.lanes
    banks = lanes * lanes * INPUT_BITS // BEAT_BITS
    products = [(projecting(design), design.row_chunks, design.most_steps)]
    if design.shape.latents:
        products.append(("product_up", design.width_chunks, design.width_chunks))
    memories = []
    for process, kept, steps in products:
        memories += [
            array_memory("tokens", process, chunk, design.shape.tokens * kept, 1, "bram", "rows"),
            array_memory("weights", process, BEAT_BITS, design.chunks * steps, 2 * banks, variable="weights"),
            parameter_memory(process, lanes, design.chunks),
        ]
    return [*memories, array_memory("adapter up", loading(design), BEAT_BITS, OUTSTANDING["up"] * BURST_BEATS)]


def power_copies(design: AttentionDesign) -> int:
    """Copies of the table of powers. A memory has two ports, so two lanes share a copy; sinks have their own."""
    return -(-design.lanes // 2) + design.shape.sinks


def _latent_memories(design: AttentionDesign) -> list[Memory]:
    """The memories of latents outside of the products."""
    chunk, kept = INPUT_BITS * design.lanes, design.shape.tokens * design.row_chunks
    roots = array_memory("inverse roots of latents", keeping(design), MULTIPLIER_BITS, INVERSE_ROOT_TABLE_WORDS)
    of_norm = RESULT_BITS * design.lanes, sum(design.latent_chunks[:2])
    return [
        array_memory("latents", keeping(design), chunk, kept, 1, "bram", "kept"),
        roots,
        array_memory("multipliers of latents", "normalize_latents", *of_norm, variable="multipliers"),
    ]


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
    """Memories of keys and queries that wait for their sum of squares, of these sums, and of the factors."""
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
    """LUTs of everything except memories, roughly: arrays, rounding, a divider, control, masters."""
    latents = design.shape.latents is not None
    arrays = (_ARRAYS + latents) * array_luts(design.lanes, design.lanes, MOST_ACCUMULATOR_BITS)
    # Rounding of projections, weights, weighted values, results and sums; of latents and their norms.
    rounding = (5 + 2 * latents) * design.lanes * requantize_luts(MOST_ACCUMULATOR_BITS, RESULT_BITS)
    if design.shape.turned:
        rounding += design.lanes * requantize_luts(2 * RESULT_BITS + 1, INPUT_BITS)
    masters = len(attention_masters(design.shape)) * MASTER_LUTS
    return arrays + rounding + RECIPROCAL_BITS**2 + CONTROL_LUTS + masters
