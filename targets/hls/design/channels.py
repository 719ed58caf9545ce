"""The channels between the processes of a MoE block: writer, reader, width and depth of each.

Names are those in ``templates/experts_channels.cpp.j2``, which declares the channels.
"""

from __future__ import annotations

import dataclasses

from moec.targets.hls.design.experts import Design
from moec.targets.hls.design.numbers import BEAT_BYTES, GATE_BITS, INPUT_BITS, MULTIPLIER_BITS, RESULT_BITS

EXPERT_BITS, COUNT_BITS = 9, 16
_TILE_BITS, _FLAGS = 16, 3
SCALE_BITS = 6
"""Bits of the exponent of a token's variance."""
PARAMETER_WORD_BITS = 48
"""Bias (32 bits) and multiplier (16 bits) of an output channel."""
JOB_BITS = EXPERT_BITS + _TILE_BITS + COUNT_BITS + _FLAGS
ITEM_BITS = COUNT_BITS + GATE_BITS
BEAT_BITS = BEAT_BYTES * 8

PROCESSES = (
    "read_tokens",
    "read_stream",
    "read_inputs",
    "split_tokens",
    "measure_tokens",
    "normalize_tokens",
    "fork_tokens",
    "feed_tokens",
    "read_router",
    "router",
    "select",
    "dispatch",
    "schedule",
    "schedule 2",
    "schedule 3",
    "load_up",
    "load_latents_and_up",
    "load_down",
    "product_up",
    "measure_latents",
    "measure_latents_behind_tokens",
    "normalize_latents",
    "product_rows",
    "split_heads",
    "read_turns",
    "read_sinks_and_turns",
    "measure_heads",
    "measure_all_heads",
    "turn_heads",
    "read_cache",
    "read_cache 2",
    "join_cache",
    "join_cache 2",
    "write_cache",
    "write_cache 2",
    "score_keys",
    "weigh_keys",
    "weigh_keys_and_sinks",
    "mix_values",
    "scale_values",
    "product_down",
    "combine",
    "pass_results",
    "read_residual",
    "add_residual",
    "pack_tokens",
    "write_tokens",
)
"""The processes of all kinds of blocks, in the order of the data flow."""


@dataclasses.dataclass(frozen=True)
class Channel:
    """A FIFO of ``depth`` words of ``bits`` each, or an array of ``copies`` such FIFOs."""

    name: str
    producer: str
    consumer: str
    bits: int
    depth: int
    copies: int = 1


def channels_of(design: Design) -> list[Channel]:
    shape, fifos = design.shape, design.fifos
    chunk = INPUT_BITS * design.lanes_in
    results = RESULT_BITS * design.lanes_out
    has_norm = shape.norm != "none"
    tokens_from, outputs_to = ("feed_tokens", "add_residual") if has_norm else ("split_tokens", "pack_tokens")
    return [
        *(
            _normalization(design)
            if has_norm
            else [Channel("beats_tokens", "read_tokens", "split_tokens", BEAT_BITS, fifos.beats)]
        ),
        Channel("beats_router", "read_router", "router", BEAT_BITS, fifos.beats),
        Channel("tokens_to_router", tokens_from, "router", chunk, fifos.tokens),
        Channel("tokens_to_experts", tokens_from, "product_up", chunk, fifos.tokens),
        Channel("logits", "router", "select", design.router_rows * design.logit_bits, design.logits_depth),
        Channel("routes", "select", "dispatch", shape.slots * (EXPERT_BITS + GATE_BITS), fifos.routes),
        Channel("jobs_load_up", "dispatch", "load_up", JOB_BITS, fifos.jobs, design.masters_up),
        Channel("jobs_load_down", "dispatch", "load_down", JOB_BITS, fifos.jobs, design.masters_down),
        Channel("jobs_up", "dispatch", "product_up", JOB_BITS, fifos.jobs),
        Channel("items_up", "dispatch", "product_up", ITEM_BITS, fifos.items),
        Channel("beats_up", "load_up", "product_up", BEAT_BITS, fifos.weights, design.masters_up),
        Channel("beats_down", "load_down", "product_down", BEAT_BITS, fifos.weights, design.masters_down),
        Channel("jobs_down", "product_up", "product_down", JOB_BITS, fifos.jobs),
        Channel("items_down", "product_up", "product_down", ITEM_BITS, design.items_down_depth),
        Channel("hidden", "product_up", "product_down", INPUT_BITS * design.lanes_out, design.hidden_depth),
        Channel("jobs_combine", "product_down", "combine", JOB_BITS, fifos.jobs),
        Channel("items_combine", "product_down", "combine", ITEM_BITS, design.items_combine_depth),
        Channel("results", "product_down", "combine", results, fifos.results),
        Channel("outputs", "combine", outputs_to, results, fifos.results),
        *(_addition(design) if has_norm else ()),
        Channel("beats_out", "pack_tokens", "write_tokens", BEAT_BITS, fifos.beats),
    ]


def _normalization(design: Design) -> list[Channel]:
    fifos, measured = design.fifos, design.norm_sum_bits + MULTIPLIER_BITS + SCALE_BITS
    return [
        Channel("beats_tokens", "read_inputs", "measure_tokens", BEAT_BITS, fifos.beats),
        Channel("beats_norm", "read_inputs", "normalize_tokens", BEAT_BITS, fifos.beats),
        Channel("beats_patches", "read_inputs", "feed_tokens", BEAT_BITS, fifos.beats),
        Channel("steps", "measure_tokens", "normalize_tokens", RESULT_BITS * design.router_lanes, design.steps_depth),
        Channel("measured", "measure_tokens", "normalize_tokens", measured, fifos.measured),
        Channel("normalized", "normalize_tokens", "feed_tokens", INPUT_BITS * design.lanes_in, fifos.tokens),
    ]


def _addition(design: Design) -> list[Channel]:
    fifos = design.fifos
    return [
        Channel("beats_residual", "read_residual", "add_residual", BEAT_BITS, fifos.beats),
        Channel("sums", "add_residual", "pack_tokens", RESULT_BITS * design.lanes_out, fifos.results),
    ]
