"""The channels between the processes of a kernel of experts: writer, reader, words and depth of each. The templates
declare the channels from here."""

from __future__ import annotations

import dataclasses
from typing import Any

from moec.targets.hls.design.experts import Design
from moec.targets.hls.design.numbers import BEAT_BYTES, GATE_BITS, INPUT_BITS, MULTIPLIER_BITS, RESULT_BITS, bits_for

EXPERT_BITS, COUNT_BITS = 9, 16
_TILE_BITS, _FLAGS = 16, 3
SCALE_BITS = 6
"""Bits of the exponent of a token's variance."""
PARAMETER_WORD_BITS = 48
"""Bias (32 bits) and multiplier (16 bits) of an output channel."""
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
class Word:
    """A word of a channel: its C++ ``type``, in which ``Block`` is the struct of the kernel, and its ``bits``."""

    type: str
    bits: int


BEAT = Word("beat_t", BEAT_BITS)
JOB = Word("job_t", EXPERT_BITS + _TILE_BITS + COUNT_BITS + _FLAGS)
ITEM = Word("item_t", ITEM_BITS)


def chunk_word(lanes: int) -> Word:
    """Inputs of one step of an array."""
    return Word("types<Block>::chunk_t", INPUT_BITS * lanes)


def results_word(lanes: int) -> Word:
    return Word("types<Block>::results_t", RESULT_BITS * lanes)


def steps_word(lanes: int) -> Word:
    """Channels of a token to be normalised."""
    return Word("norm_types<Block>::step_t", RESULT_BITS * lanes)


def measured_word(width: int, block: str = "Block") -> Word:
    """The sum of ``width`` int16 channels, and the inverse root of their variance."""
    return Word(f"norm_types<{block}>::measured_t", RESULT_BITS + bits_for(width) + MULTIPLIER_BITS + SCALE_BITS)


@dataclasses.dataclass(frozen=True)
class Channel:
    """A FIFO of ``depth`` words, or an array of ``array`` such FIFOs."""

    name: str
    producer: str
    consumer: str
    word: Word
    depth: int
    array: int | None = None

    @property
    def bits(self) -> int:
        return self.word.bits

    @property
    def copies(self) -> int:
        return self.array or 1

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as an artifact keeps it."""
        names = ("name", "producer", "consumer", "bits", "depth", "copies")
        return {name: getattr(self, name) for name in names}


def channels_of(design: Design) -> list[Channel]:
    shape, fifos = design.shape, design.fifos
    chunk, hidden = chunk_word(design.lanes_in), chunk_word(design.lanes_out)
    results = results_word(design.lanes_out)
    logits = Word("types<Block>::logits_t", design.router_rows * design.logit_bits)
    routes = Word("types<Block>::route_t", shape.slots * (EXPERT_BITS + GATE_BITS))
    has_norm = shape.norm != "none"
    tokens_from, outputs_to = ("feed_tokens", "add_residual") if has_norm else ("split_tokens", "pack_tokens")
    return [
        *(
            _normalization(design)
            if has_norm
            else [Channel("beats_tokens", "read_tokens", "split_tokens", BEAT, fifos.beats)]
        ),
        Channel("beats_router", "read_router", "router", BEAT, fifos.beats),
        Channel("tokens_to_router", tokens_from, "router", chunk, fifos.tokens),
        Channel("tokens_to_experts", tokens_from, "product_up", chunk, fifos.tokens),
        Channel("logits", "router", "select", logits, design.logits_depth),
        Channel("routes", "select", "dispatch", routes, fifos.routes),
        Channel("jobs_load_up", "dispatch", "load_up", JOB, fifos.jobs, design.masters_up),
        Channel("jobs_load_down", "dispatch", "load_down", JOB, fifos.jobs, design.masters_down),
        Channel("jobs_up", "dispatch", "product_up", JOB, fifos.jobs),
        Channel("items_up", "dispatch", "product_up", ITEM, fifos.items),
        Channel("beats_up", "load_up", "product_up", BEAT, fifos.weights, design.masters_up),
        Channel("beats_down", "load_down", "product_down", BEAT, fifos.weights, design.masters_down),
        Channel("jobs_down", "product_up", "product_down", JOB, fifos.jobs),
        Channel("items_down", "product_up", "product_down", ITEM, design.items_down_depth),
        Channel("hidden", "product_up", "product_down", hidden, design.hidden_depth),
        Channel("jobs_combine", "product_down", "combine", JOB, fifos.jobs),
        Channel("items_combine", "product_down", "combine", ITEM, design.items_combine_depth),
        Channel("results", "product_down", "combine", results, fifos.results),
        Channel("outputs", "combine", outputs_to, results, fifos.results),
        *(_addition(design) if has_norm else ()),
        Channel("beats_out", "pack_tokens", "write_tokens", BEAT, fifos.beats),
    ]


def _normalization(design: Design) -> list[Channel]:
    fifos, measured = design.fifos, measured_word(design.shape.width)
    return [
        Channel("beats_tokens", "read_inputs", "measure_tokens", BEAT, fifos.beats),
        Channel("beats_norm", "read_inputs", "normalize_tokens", BEAT, fifos.beats),
        Channel("beats_patches", "read_inputs", "feed_tokens", BEAT, fifos.beats),
        Channel("steps", "measure_tokens", "normalize_tokens", steps_word(design.router_lanes), design.steps_depth),
        Channel("measured", "measure_tokens", "normalize_tokens", measured, fifos.measured),
        Channel("normalized", "normalize_tokens", "feed_tokens", chunk_word(design.lanes_in), fifos.tokens),
    ]


def _addition(design: Design) -> list[Channel]:
    return [
        Channel("beats_residual", "read_residual", "add_residual", BEAT, design.fifos.beats),
        Channel("sums", "add_residual", "pack_tokens", results_word(design.lanes_out), design.fifos.results),
    ]
