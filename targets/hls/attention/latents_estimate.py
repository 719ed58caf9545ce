"""Estimated costs of the latents of an attention block: their array, their memories, and their cycles.

All tokens are normalised before the first latent is computed, and all latents are stored before the first is sent; then
rows are computed. So the cycles of these phases add up. Only the loading of weights overlaps: one master brings those
of latents and then those of rows.
"""

from __future__ import annotations

from moec.targets.hls.attention.channels import keeping
from moec.targets.hls.design.attention import AttentionDesign
from moec.targets.hls.design.numbers import BEAT_BYTES, INPUT_BITS, MULTIPLIER_BITS, PARAMETER_BYTES, RESULT_BITS
from moec.targets.hls.hardware.arithmetic import norm_dsps
from moec.targets.hls.hardware.cycles import Loader, MemoryPace
from moec.targets.hls.hardware.memories import INVERSE_ROOT_TABLE_WORDS, Memory, array_memory

_LOOPS = 4
"""Pipelines in series from the product that computes latents to the one that computes rows."""


def latent_tile_beats(design: AttentionDesign) -> int:
    parameters = -(-design.head_width * PARAMETER_BYTES // BEAT_BYTES)
    return design.width * design.head_width // BEAT_BYTES + parameters


def latent_beats(design: AttentionDesign) -> int:
    """Beats of all weights of latents; 0 without latents."""
    return design.latent_norm_beats + design.latent_tiles * latent_tile_beats(design)


def rows_taken(
    design: AttentionDesign, tokens: int, loader: Loader, normalized: float, pace: MemoryPace, stages: int
) -> float:
    """The time at which the process that computes rows has taken all of its inputs. ``normalized``: the time at which
    all tokens are normalised."""
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
    # The first chunk of each latent waits until the last one is in the sum of squares.
    waits = max(design.latent_chunks[:2])
    return done + tokens * design.row_chunks + waits + _LOOPS * stages


def latent_dsps(design: AttentionDesign, of_product: int) -> dict[str, int]:
    """DSPs by process. ``of_product``: of the product that computes latents, an array of its own."""
    assert design.shape.latents is not None
    of_norm = norm_dsps(design.shape.latents.norm_width, design.lanes)
    return {
        "product_up": of_product,
        keeping(design): of_norm["measure_tokens"],
        "normalize_latents": of_norm["normalize_tokens"],
    }


def latent_memories(design: AttentionDesign) -> list[Memory]:
    """The memories of latents outside of the products."""
    chunk, kept = INPUT_BITS * design.lanes, design.shape.tokens * design.row_chunks
    roots = array_memory("inverse roots of latents", keeping(design), MULTIPLIER_BITS, INVERSE_ROOT_TABLE_WORDS)
    of_norm = RESULT_BITS * design.lanes, sum(design.latent_chunks[:2])
    return [
        array_memory("latents", keeping(design), chunk, kept, 1, "bram", "kept"),
        roots,
        array_memory("multipliers of latents", "normalize_latents", *of_norm, variable="multipliers"),
    ]
