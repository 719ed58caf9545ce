"""The channels between the processes of a kernel of attention."""

from __future__ import annotations

from moec.targets.hls.design.attention import AttentionDesign
from moec.targets.hls.design.channels import (
    BEAT,
    ITEM,
    JOB,
    Channel,
    Word,
    chunk_word,
    measured_word,
    results_word,
    steps_word,
)

KEY_WEIGHT_BITS, RECIPROCAL_BITS = 8, 20


def attention_channels(design: AttentionDesign) -> list[Channel]:
    latents = _latents(design) if design.shape.latents else ()
    return [*_tokens(design), *latents, *_products(design), *_heads(design), *_results(design)]


def projecting(design: AttentionDesign) -> str:
    """The process that computes rows of heads. With latents, ``product_up`` computes these instead."""
    return "product_rows" if design.shape.latents else "product_up"


def loading(design: AttentionDesign) -> str:
    """The process that loads the weights of rows of heads, and of latents."""
    return "load_latents_and_up" if design.shape.latents else "load_up"


def keeping(design: AttentionDesign) -> str:
    """The process that stores latents and sums their squares."""
    tokens = design.shape.latents is not None and design.shape.latents.tokens
    return "measure_latents_behind_tokens" if tokens else "measure_latents"


def measuring(design: AttentionDesign) -> str:
    """The process that sums the squares of keys and queries for their normalisation."""
    return "measure_all_heads" if design.shape.joint_norm else "measure_heads"


def weighing(design: AttentionDesign) -> str:
    """The process that weighs keys."""
    return "weigh_keys_and_sinks" if design.shape.sinks else "weigh_keys"


def turning(design: AttentionDesign) -> str:
    """The process that reads the rotary embeddings of keys and queries, and sinks."""
    return "read_sinks_and_turns" if design.shape.sinks else "read_turns"


def _tokens(design: AttentionDesign) -> list[Channel]:
    fifos, chunk = design.fifos, chunk_word(design.lanes)
    forks = design.shape.latents is not None and design.shape.latents.tokens
    measured = measured_word(design.shape.width)
    return [
        Channel("beats_tokens", "read_stream", "measure_tokens", BEAT, fifos.beats),
        Channel("beats_norm", "read_stream", "normalize_tokens", BEAT, fifos.beats),
        Channel("steps", "measure_tokens", "normalize_tokens", steps_word(design.norm_lanes), design.steps_depth),
        Channel("measured", "measure_tokens", "normalize_tokens", measured, fifos.measured),
        Channel("normalized", "normalize_tokens", "fork_tokens" if forks else "product_up", chunk, fifos.tokens),
    ]


def _latents(design: AttentionDesign) -> list[Channel]:
    assert design.shape.latents is not None
    fifos, chunk, keep = design.fifos, chunk_word(design.lanes), keeping(design)
    measured = measured_word(design.shape.latents.norm_width, "latent_of<Block> ")
    forked = [
        Channel("tokens_to_latents", "fork_tokens", "product_up", chunk, fifos.tokens),
        Channel("tokens_to_rows", "fork_tokens", keep, chunk, fifos.tokens),
    ]
    return [
        *(forked if design.shape.latents.tokens else ()),
        Channel("jobs_load_latents", "schedule", loading(design), JOB, fifos.jobs),
        Channel("jobs_latents", "schedule", "product_up", JOB, fifos.jobs),
        Channel("items_latents", "schedule", "product_up", ITEM, fifos.items),
        Channel("beats_latent_norm", loading(design), "normalize_latents", BEAT, fifos.beats),
        Channel("beats_latents", loading(design), "product_up", BEAT, fifos.weights, 1),
        Channel("jobs_keep", "product_up", keep, JOB, fifos.jobs),
        Channel("items_keep", "product_up", keep, ITEM, design.items_keep_depth),
        Channel("latents", "product_up", keep, chunk, fifos.rows),
        Channel("measured_latents", keep, "normalize_latents", chunk, design.measured_latents_depth),
        Channel("latent_measures", keep, "normalize_latents", measured, fifos.measured),
        Channel("rows_of_latents", "normalize_latents", projecting(design), chunk, fifos.tokens),
    ]


def _products(design: AttentionDesign) -> list[Channel]:
    fifos, load, project = design.fifos, loading(design), projecting(design)
    of_up, of_down = ("schedule 2", "schedule 3") if design.shape.latents else ("schedule", "schedule 2")
    return [
        Channel("jobs_load_up", of_up, load, JOB, fifos.jobs),
        Channel("jobs_up", of_up, project, JOB, fifos.jobs),
        Channel("items_up", of_up, project, ITEM, fifos.items),
        Channel("jobs_load_down", of_down, "load_down", JOB, fifos.jobs),
        Channel("jobs_down", of_down, "product_down", JOB, fifos.jobs),
        Channel("items_down", of_down, "product_down", ITEM, fifos.items),
        Channel("beats_up", load, project, BEAT, fifos.weights, None if design.shape.latents else 1),
        Channel("beats_down", "load_down", "product_down", BEAT, fifos.weights, 1),
        Channel("jobs_split", project, "split_heads", JOB, fifos.jobs),
        Channel("items_split", project, "split_heads", ITEM, design.items_split_depth),
    ]


def _heads(design: AttentionDesign) -> list[Channel]:
    fifos, lanes, chunk = design.fifos, design.lanes, chunk_word(design.lanes)
    scores = Word("attention_types<Block>::scores_t", design.score_bits * lanes)
    weights = Word("attention_types<Block>::weights_t", KEY_WEIGHT_BITS * lanes)
    reciprocal = Word("attention_types<Block>::reciprocal_t", RECIPROCAL_BITS)
    mixed = Word("attention_types<Block>::mixed_t", design.mixed_bits * lanes)
    turned, cached = design.shape.turned, design.shape.cached
    to_scores, to_values = ("join_cache", "join_cache 2") if cached else ("score_keys", "mix_values")
    return [
        Channel("projected", projecting(design), "split_heads", chunk, fifos.rows),
        Channel("keys_and_queries", "split_heads", measuring(design) if turned else to_scores, chunk, fifos.rows),
        *(_turns(design, to_scores) if turned else ()),
        *(_cache(design) if cached else ()),
        Channel("values", "split_heads", to_values, chunk, fifos.rows),
        Channel("scores", "score_keys", weighing(design), scores, fifos.scores),
        Channel("key_weights", weighing(design), "mix_values", weights, design.key_weights_depth),
        Channel("reciprocals", weighing(design), "scale_values", reciprocal, design.reciprocals_depth),
        Channel("mixed", "mix_values", "scale_values", mixed, fifos.results),
        Channel("attended", "scale_values", "product_down", chunk, fifos.rows),
    ]


def _turns(design: AttentionDesign, turned_to: str) -> list[Channel]:
    fifos, chunk = design.fifos, chunk_word(design.lanes)
    measured = measured_word(design.shape.norm_width, "row_of<Block> ")
    return [
        Channel("beats_turns", turning(design), "turn_heads", BEAT, fifos.beats),
        *(
            [Channel("beats_sinks", turning(design), weighing(design), BEAT, design.sink_beats)]
            if design.shape.sinks
            else ()
        ),
        Channel("measured_rows", measuring(design), "turn_heads", chunk, design.measured_rows_depth),
        Channel("measures", measuring(design), "turn_heads", measured, fifos.measured),
        Channel("turned", "turn_heads", turned_to, chunk, fifos.rows),
    ]


def _cache(design: AttentionDesign) -> list[Channel]:
    fifos, chunk = design.fifos, chunk_word(design.lanes)
    channels = []
    for name, number, reader in (("keys", "", "score_keys"), ("values", " 2", "mix_values")):
        join = f"join_cache{number}"
        channels += [
            Channel(f"held_{name}", f"read_cache{number}", join, BEAT, fifos.beats),
            Channel(f"joined_{name}", join, reader, chunk, fifos.rows),
            Channel(f"added_{name}", join, f"write_cache{number}", BEAT, fifos.beats),
        ]
    return channels


def _results(design: AttentionDesign) -> list[Channel]:
    fifos, results = design.fifos, results_word(design.lanes)
    return [
        Channel("jobs_end", "product_down", "pass_results", JOB, fifos.jobs),
        Channel("items_end", "product_down", "pass_results", ITEM, design.items_end_depth),
        Channel("results", "product_down", "pass_results", results, fifos.results),
        Channel("outputs", "pass_results", "add_residual", results, fifos.results),
        Channel("beats_residual", "read_residual", "add_residual", BEAT, fifos.beats),
        Channel("sums", "add_residual", "pack_tokens", results, fifos.results),
        Channel("beats_out", "pack_tokens", "write_tokens", BEAT, fifos.beats),
    ]
