"""The channels between the processes of an attention block, named as in ``templates/attention_channels.cpp.j2``."""

from __future__ import annotations

from moec.targets.hls.attention.design import AttentionDesign
from moec.targets.hls.moe.channels import BEAT_BITS, ITEM_BITS, JOB_BITS, SCALE_BITS, Channel
from moec.targets.hls.moe.design import INPUT_BITS, MULTIPLIER_BITS, RESULT_BITS, bits_for

KEY_WEIGHT_BITS, RECIPROCAL_BITS = 8, 20


def attention_channels(design: AttentionDesign) -> list[Channel]:
    return [*_tokens(design), *_products(design), *_heads(design), *_results(design)]


def measuring(design: AttentionDesign) -> str:
    """The process that measures keys and queries, for their normalisation."""
    return "measure_all_heads" if design.shape.joint_norm else "measure_heads"


def weighing(design: AttentionDesign) -> str:
    """The process that weighs keys."""
    return "weigh_keys_and_sinks" if design.shape.sinks else "weigh_keys"


def turning(design: AttentionDesign) -> str:
    """The process that reads the turns of keys and queries."""
    return "read_sinks_and_turns" if design.shape.sinks else "read_turns"


def _tokens(design: AttentionDesign) -> list[Channel]:
    fifos, chunk = design.fifos, INPUT_BITS * design.lanes
    measured = design.norm_sum_bits + MULTIPLIER_BITS + SCALE_BITS
    return [
        Channel("beats_tokens", "read_stream", "measure_tokens", BEAT_BITS, fifos.beats),
        Channel("beats_norm", "read_stream", "normalize_tokens", BEAT_BITS, fifos.beats),
        Channel("steps", "measure_tokens", "normalize_tokens", RESULT_BITS * design.norm_lanes, design.steps_depth),
        Channel("measured", "measure_tokens", "normalize_tokens", measured, fifos.measured),
        Channel("normalized", "normalize_tokens", "product_up", chunk, fifos.tokens),
    ]


def _products(design: AttentionDesign) -> list[Channel]:
    fifos = design.fifos
    return [
        Channel("jobs_load_up", "schedule", "load_up", JOB_BITS, fifos.jobs),
        Channel("jobs_up", "schedule", "product_up", JOB_BITS, fifos.jobs),
        Channel("items_up", "schedule", "product_up", ITEM_BITS, fifos.items),
        Channel("jobs_load_down", "schedule 2", "load_down", JOB_BITS, fifos.jobs),
        Channel("jobs_down", "schedule 2", "product_down", JOB_BITS, fifos.jobs),
        Channel("items_down", "schedule 2", "product_down", ITEM_BITS, fifos.items),
        Channel("beats_up", "load_up", "product_up", BEAT_BITS, fifos.weights),
        Channel("beats_down", "load_down", "product_down", BEAT_BITS, fifos.weights),
        Channel("jobs_split", "product_up", "split_heads", JOB_BITS, fifos.jobs),
        Channel("items_split", "product_up", "split_heads", ITEM_BITS, design.items_split_depth),
    ]


def _heads(design: AttentionDesign) -> list[Channel]:
    fifos, lanes = design.fifos, design.lanes
    chunk = INPUT_BITS * lanes
    turned, cached = design.shape.turned, design.shape.cached
    to_scores, to_values = ("join_cache", "join_cache 2") if cached else ("score_keys", "mix_values")
    return [
        Channel("projected", "product_up", "split_heads", chunk, fifos.rows),
        Channel("keys_and_queries", "split_heads", measuring(design) if turned else to_scores, chunk, fifos.rows),
        *(_turns(design, to_scores) if turned else ()),
        *(_cache(design) if cached else ()),
        Channel("values", "split_heads", to_values, chunk, fifos.rows),
        Channel("scores", "score_keys", weighing(design), design.score_bits * lanes, fifos.scores),
        Channel("key_weights", weighing(design), "mix_values", KEY_WEIGHT_BITS * lanes, design.key_weights_depth),
        Channel("reciprocals", weighing(design), "scale_values", RECIPROCAL_BITS, design.reciprocals_depth),
        Channel("mixed", "mix_values", "scale_values", design.mixed_bits * lanes, fifos.results),
        Channel("attended", "scale_values", "product_down", chunk, fifos.rows),
    ]


def _turns(design: AttentionDesign, turned_to: str) -> list[Channel]:
    fifos, chunk = design.fifos, INPUT_BITS * design.lanes
    measured = RESULT_BITS + bits_for(design.shape.norm_width) + MULTIPLIER_BITS + SCALE_BITS
    return [
        Channel("beats_turns", turning(design), "turn_heads", BEAT_BITS, fifos.beats),
        *(
            [Channel("beats_sinks", turning(design), weighing(design), BEAT_BITS, design.sink_beats)]
            if design.shape.sinks
            else ()
        ),
        Channel("measured_rows", measuring(design), "turn_heads", chunk, design.measured_rows_depth),
        Channel("measures", measuring(design), "turn_heads", measured, fifos.measured),
        Channel("turned", "turn_heads", turned_to, chunk, fifos.rows),
    ]


def _cache(design: AttentionDesign) -> list[Channel]:
    fifos, chunk = design.fifos, INPUT_BITS * design.lanes
    found = []
    for name, number, reader in (("keys", "", "score_keys"), ("values", " 2", "mix_values")):
        join = f"join_cache{number}"
        found += [
            Channel(f"held_{name}", f"read_cache{number}", join, BEAT_BITS, fifos.beats),
            Channel(f"joined_{name}", join, reader, chunk, fifos.rows),
            Channel(f"added_{name}", join, f"write_cache{number}", BEAT_BITS, fifos.beats),
        ]
    return found


def _results(design: AttentionDesign) -> list[Channel]:
    fifos, results = design.fifos, RESULT_BITS * design.lanes
    return [
        Channel("jobs_end", "product_down", "pass_results", JOB_BITS, fifos.jobs),
        Channel("items_end", "product_down", "pass_results", ITEM_BITS, design.items_end_depth),
        Channel("results", "product_down", "pass_results", results, fifos.results),
        Channel("outputs", "pass_results", "add_residual", results, fifos.results),
        Channel("beats_residual", "read_residual", "add_residual", BEAT_BITS, fifos.beats),
        Channel("sums", "add_residual", "pack_tokens", results, fifos.results),
        Channel("beats_out", "pack_tokens", "write_tokens", BEAT_BITS, fifos.beats),
    ]
