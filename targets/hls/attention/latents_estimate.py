"""What latents cost in front of an attention block's rows: an array of their own, what keeps them, and their cycles.

All tokens are normalised before the first latent is computed, and all latents are kept before the first is sent; then
rows are computed. So these phases add up, but for weights: one master brings those of latents, then those of rows.
"""

from __future__ import annotations

from moec.targets.hls.attention.channels import keeping
from moec.targets.hls.attention.design import AttentionDesign
from moec.targets.hls.hardware.arithmetic import norm_dsps
from moec.targets.hls.hardware.cycles import Loader, MemoryPace
from moec.targets.hls.hardware.memories import INVERSE_ROOT_TABLE_WORDS, Memory, array_memory
from moec.targets.hls.moe.design import BEAT_BYTES, INPUT_BITS, MULTIPLIER_BITS, PARAMETER_BYTES, RESULT_BITS

_LOOPS = 4
"""Pipelines one behind the other: from what a product of latents made until it is where rows are computed."""


def latent_tile_beats(design: AttentionDesign) -> int:
    parameters = -(-design.head_width * PARAMETER_BYTES // BEAT_BYTES)
    return design.width * design.head_width // BEAT_BYTES + parameters


def latent_beats(design: AttentionDesign) -> int:
    """Of all weights of latents; 0 where there are none."""
    return design.latent_norm_beats + design.latent_tiles * latent_tile_beats(design)


def rows_taken(
    design: AttentionDesign, tokens: int, loader: Loader, normalized: float, pace: MemoryPace, stages: int
) -> float:
    """When all that rows are products of has been taken, of tokens that are ``normalized`` by then."""
    beats, per_tile = latent_tile_beats(design), tokens * design.item_cycles
    multipliers = pace.cycles(design.latent_norm_beats, design.latent_norm_beats)
    start = max(normalized, loader.arrival(beats, multipliers, normalized)) + stages
    announced = done = 0.0
    for tile in range(design.latent_tiles):
        done = start + per_tile + stages
        if tile + 1 < design.latent_tiles:
            arrived = loader.arrival(beats, announced, start)
            announced = max(announced, start + design.item_cycles * (tokens - 1 - design.fifos.items))
            missing = beats - per_tile
            start = done if arrived <= done else max(done + stages + max(1, missing), arrived) + stages
    # Of each part, the first chunk waits until the last one has been measured.
    waits = max(design.latent_chunks[:2])
    return done + tokens * design.row_chunks + waits + _LOOPS * stages


def latent_dsps(design: AttentionDesign, of_product: int) -> dict[str, int]:
    """By process; ``of_product``: those of a product of rows, which has an array of its own."""
    assert design.shape.latents is not None
    of_norm = norm_dsps(design.shape.latents.norm_width, design.lanes)
    return {
        "product_up": of_product,
        keeping(design): of_norm["measure_tokens"],
        "normalize_latents": of_norm["normalize_tokens"],
    }


def latent_memories(design: AttentionDesign) -> list[Memory]:
    """What is in none of the products."""
    chunk, kept = INPUT_BITS * design.lanes, design.shape.tokens * design.row_chunks
    roots = array_memory("inverse roots of latents", keeping(design), MULTIPLIER_BITS, INVERSE_ROOT_TABLE_WORDS)
    of_norm = RESULT_BITS * design.lanes, sum(design.latent_chunks[:2])
    return [
        array_memory("latents", keeping(design), chunk, kept, 1, "bram", "kept"),
        roots,
        array_memory("multipliers of latents", "normalize_latents", *of_norm, variable="multipliers"),
    ]
