"""Attention whose rows are products of latents (DeepSeek): blocks that are found compute what the graph does, integers
are close to floats however a sequence is cut, and generated C++ computes the integers."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest

from moec.common.errors import UnsupportedError
from moec.compiling.compiler import import_model
from moec.ir import interpreter
from moec.passes import pipeline
from moec.simulators.hls.simulate import timed_calls
from moec.simulators.hls.simulator import simulate_timed
from moec.targets.hls.attention import reference
from moec.targets.hls.attention.agreement import attention_agreement
from moec.targets.hls.attention.channels import attention_channels
from moec.targets.hls.attention.cycles import attention_cycles
from moec.targets.hls.attention.latents import FloatLatents, Latent
from moec.targets.hls.attention.packing import calls_of
from moec.targets.hls.attention.quantize import quantize_attention
from moec.targets.hls.attention.resources import attention_dsps, attention_memories
from moec.targets.hls.design.attention import AttentionDesign, LatentShape
from moec.targets.hls.design.channels import PROCESSES
from moec.targets.hls.design.numbers import MOST_STAGES, USUAL_STAGES
from moec.targets.hls.graph.calibrate import run_floats
from moec.targets.hls.hardware.cycles import MemoryPace
from moec.targets.hls.moe.quality import signal_to_noise
from moec.targets.hls.options import HlsOptions
from moec.targets.hls.target import HlsTarget

from .graphs import D, GraphBuilder
from .lint.linter import lint
from .test_attention import decoder, files_of, head_norm_for, tokens_for
from .test_attention_graph import CHANNELS, HEADS, found_in, normalized, turned

RANK, QUERY_RANK, PLAIN, VALUES = 7, 9, 2, 3
"""Ranks of latents and widths of a head: its row has ``PLAIN`` channels, then ``CHANNELS`` with a rotary embedding;
values have ``VALUES`` channels."""


def latent_heads(
    graph: GraphBuilder,
    query_rank: int = QUERY_RANK,
    layout: str = "halves",
    *,
    apart: bool = False,
    one_latent: bool = True,
    by_head: bool = False,
    norm: str = "RMSNormalization",
    values: int = VALUES,
) -> ir.Value:
    """Attention with latents. ``apart``: neighbours are moved into halves before the rotary embedding; ``by_head``: the
    rotated channels of keys differ by head; ``one_latent``: keys and values share a latent."""
    tokens = normalized(graph)

    def heads(value: ir.Value, count: int) -> ir.Value:
        return graph.add("Transpose", graph.add("Reshape", value, numbers(0, 0, count, -1)), perm=[0, 2, 1, 3])

    def numbers(*given: int) -> ir.Value:
        return graph.constant(np.array(given))

    def part(value: ir.Value, first: int, last: int) -> ir.Value:
        return graph.add("Slice", value, numbers(first), numbers(last), numbers(-1))

    def turn(rows: ir.Value) -> ir.Value:
        if apart:
            rows = graph.add("Gather", rows, numbers(0, 2, 1, 3), axis=-1)
        return turned(graph, rows, layout)

    def latent(rank: int) -> ir.Value:
        scales = [graph.normal(rank)] if norm == "RMSNormalization" else [graph.normal(rank), graph.normal(rank)]
        return graph.add(norm, graph.dense(tokens, rank), *scales)

    source, size = (latent(query_rank), query_rank) if query_rank else (tokens, D)
    rows = heads(graph.dense(source, HEADS * (PLAIN + CHANNELS), size), HEADS)
    query = graph.add("Concat", part(rows, 0, PLAIN), turn(part(rows, PLAIN, PLAIN + CHANNELS)), axis=-1)
    of_keys = latent(RANK)
    both = heads(graph.dense(of_keys, HEADS * (PLAIN + values), RANK), HEADS)
    position = turn(heads(graph.dense(tokens, HEADS * CHANNELS if by_head else CHANNELS), HEADS if by_head else 1))
    if not by_head:
        position = graph.add("Expand", position, numbers(1, HEADS, 1, 1))
    key = graph.add("Concat", part(both, 0, PLAIN), position, axis=-1)
    value = part(both, PLAIN, PLAIN + values)
    if not one_latent:
        value = heads(graph.dense(latent(RANK), HEADS * values, RANK), HEADS)
    attended = graph.add("Transpose", graph.add("Attention", query, key, value, is_causal=1), perm=[0, 2, 1, 3])
    return graph.dense(graph.add("Reshape", attended, numbers(0, 0, -1)), D, HEADS * values)


@pytest.mark.parametrize(
    ("fields", "latents", "width"),
    [
        ({}, LatentShape(QUERY_RANK, RANK, CHANNELS, False), 6),
        ({"query_rank": 0, "layout": "neighbours"}, LatentShape(0, RANK, CHANNELS, True), 6),
        ({"apart": True, "by_head": True}, LatentShape(QUERY_RANK, RANK, 0, True), 6),
        ({"values": 7, "query_rank": 0, "apart": True}, LatentShape(0, RANK, CHANNELS, True), 8),
    ],
)
def test_what_is_found_computes_what_the_graph_does(fields, latents, width):
    graph = GraphBuilder()
    model, (block,), refused = found_in(graph, latent_heads(graph, **fields))
    assert refused == []
    assert (block.numbers.latents.shape, block.numbers.head_width) == (latents, width)
    for count in (1, 9):
        x = np.random.default_rng(1).normal(size=(2, count, D)).astype(np.float32)
        (expected,) = interpreter.run(model, {"x": x}).values()
        np.testing.assert_allclose(block.numbers.run(x).output, expected, atol=5e-5)
    seen = run_floats(model, [block], {"x": x})
    attention_agreement(block, seen.tokens[0], seen.results[0])
    wrong = dataclasses.replace(block.numbers.latents.keys, weights=block.numbers.latents.keys.weights[::-1])
    numbers = dataclasses.replace(block.numbers, latents=dataclasses.replace(block.numbers.latents, keys=wrong))
    with pytest.raises(UnsupportedError, match="the float form of the block differs from the graph"):
        attention_agreement(dataclasses.replace(block, numbers=numbers), seen.tokens[0], seen.results[0])


def test_a_fixed_number_of_sequences_is_probed_together():
    graph = GraphBuilder()
    graph.x.shape = ir.Shape([2, 9, D])
    _, actual, refused = found_in(graph, latent_heads(graph))
    assert (len(actual), refused) == (1, [])


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"one_latent": False}, "expected one latent of keys and values, and at most another one of queries"),
        ({"layout": "long"}, "in sequences of 8 tokens"),
    ],
)
def test_other_forms_are_refused(fields, reason):
    graph = GraphBuilder()
    _, actual, (message,) = found_in(graph, latent_heads(graph, **fields))
    assert actual == [] and reason in message


def test_latents_are_normalised_by_their_root_mean_squares():
    graph = GraphBuilder()
    _, (block,), _ = found_in(graph, latent_heads(graph, norm="LayerNormalization"))
    tokens = np.ones((1, 4, D), np.float32)
    with pytest.raises(UnsupportedError, match=f"{block.name}: normalises latents in another way; expected RMS"):
        quantize_attention(block.numbers, tokens, most_tokens=4)


def with_latents(queries=20, keys=12, shared=4, tokens=False, *, width=24, seed=0, **fields):
    """A decoder whose rows are products of latents of these sizes. Queries without a latent take tokens, and so do keys
    without shared channels if ``tokens`` is True."""
    random = np.random.default_rng(seed)

    def latent(rank: int, norm: bool = True) -> Latent:
        weights, bias = random.normal(0, width**-0.5, (rank, width)), random.normal(0, 0.05, rank)
        return Latent(
            weights.astype(np.float32), bias.astype(np.float32), head_norm_for(rank, seed + 3) if norm else None
        )

    latents = FloatLatents(
        latent(keys), latent(queries) if queries else None, latent(shared, False) if shared else None, tokens
    )
    rows = decoder(width=width * tokens + queries + keys + shared, **fields)
    first = width * tokens + queries
    rows.query[..., first:] = 0
    rows.query[..., : width * tokens] *= not queries
    rows.key[..., : first if shared or not tokens else 0] = 0
    rows.value[..., :first] = rows.value[..., first + keys :] = 0
    output = random.normal(0, rows.output.shape[1] ** -0.5, (width, rows.output.shape[1])).astype(np.float32)
    norm, bias = head_norm_for(width), np.zeros(width, np.float32)
    return dataclasses.replace(rows, norm=norm, output=output, output_bias=bias, latents=latents)


FORMS = {
    "all latents": {},
    "queries of tokens": {"queries": 0, "tokens": True},
    "keys of tokens": {"queries": 0, "shared": 0, "tokens": True},
    "normed": {"normed": True, "turned": 4},
    "one head of keys": {"sharing": 4, "queries": 0, "shared": 5, "tokens": True, "head_width": 40},
    "odd ranks": {"queries": 33, "keys": 41, "shared": 9, "tokens": True},
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_integers_are_close_to_floats(form):
    block = with_latents(**form)
    tokens = tokens_for(block, 4, 50)
    integers, floats = quantize_attention(block, tokens, most_tokens=50), block.run(tokens)
    for sequence, expected in zip(tokens, floats.output, strict=True):
        actual = reference.run(integers, integers.quantized(sequence)).output * integers.output_scale
        assert signal_to_noise(expected, actual) > 30


@pytest.mark.parametrize("calls", [[12], [9, 1, 1, 1], [1] * 12, [5, 7]])
def test_calls_behind_each_other_are_one_sequence(calls):
    block = with_latents()
    integers = quantize_attention(block, tokens_for(block, 4, 20), most_tokens=12, cached=20)
    steps = integers.quantized(tokens_for(block, 1, 12)[0])
    whole, parts, at = reference.run(integers, steps), [None], 0
    for count in calls:
        parts.append(reference.run(integers, steps[at : at + count], parts[-1]))
        at += count
    assert np.array_equal(np.concatenate([part.output for part in parts[1:]]), whole.output)


def test_an_epsilon_above_all_latents_is_refused():
    block = with_latents()
    norm = dataclasses.replace(block.latents.keys.norm, epsilon=1e3)
    latents = dataclasses.replace(block.latents, keys=dataclasses.replace(block.latents.keys, norm=norm))
    with pytest.raises(
        UnsupportedError, match=r"epsilon .* of a latent's normalisation is larger than the mean square of any int8 row"
    ):
        quantize_attention(dataclasses.replace(block, latents=latents), tokens_for(block, 1, 4), most_tokens=4)


@pytest.mark.parametrize("form", [FORMS["all latents"], FORMS["odd ranks"]])
def test_every_process_of_the_estimate_is_one_of_the_block(form):
    """Latents add an array and norms, but no ports."""
    block = with_latents(**form)
    integers = quantize_attention(block, tokens_for(block, 1, 20), most_tokens=21)
    design = AttentionDesign(integers.shape, 8)
    channels = attention_channels(design)
    processes = {end for channel in channels for end in (channel.producer, channel.consumer)}
    assert {memory.process for memory in attention_memories(design)} | set(attention_dsps(design)) <= processes
    for channel in channels:
        assert PROCESSES.index(channel.producer) < PROCESSES.index(channel.consumer)
    assert attention_dsps(design)["product_up"] == attention_dsps(design)["product_rows"] == 8 * 8 // 2 + 8
    files = files_of(integers, integers.quantized(tokens_for(block, 1, 1)[0]), lanes=8)
    assert lint(files) == []


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("form", "cached", "counts"),
    [
        ("normed", 19, [19]),
        *(pytest.param(form, 19, [0, 19], marks=pytest.mark.nightly) for form in FORMS if form != "normed"),
        *(pytest.param(form, 0, [0, 1, 17], marks=pytest.mark.nightly) for form in FORMS),
    ],
)
def test_timed_simulation_equals_the_reference(form, cached, counts):
    """With a cache, 19 tokens come as calls of 8, 8, 1, 1 and 1."""
    block = with_latents(**FORMS[form])
    tokens = tokens_for(block, 4, 20)
    integers = quantize_attention(block, tokens, most_tokens=8 if cached else 21, cached=cached)
    for count in counts:
        files = files_of(integers, integers.quantized(tokens[0][:count]), lanes=8)
        for settings in ({}, {"pipeline_depth": MOST_STAGES}):
            assert f"PASS: {count} tokens" in simulate_timed(files, **settings).output


@pytest.mark.nightly
@pytest.mark.parametrize(("share", "latency", "stages", "most"), [(1.0, 0, 0, 0.02), (0.25, 64, USUAL_STAGES, 0.06)])
@pytest.mark.parametrize("form", [{"queries": 48}, {"queries": 0, "tokens": True}])
def test_estimates_agree_with_the_simulation(form, share, latency, stages, most):
    """Calls have 32 tokens, 8 after them, and then single tokens."""
    block = with_latents(**form, keys=32, shared=16, width=64, head_width=32, sharing=1)
    integers = quantize_attention(block, tokens_for(block, 4, 43), most_tokens=32, cached=43)
    files = files_of(integers, integers.quantized(tokens_for(block, 1, 43)[0]), lanes=8)
    simulated = simulate_timed(files, memory_share=share, memory_latency=latency, pipeline_depth=stages)
    calls, past, design = calls_of(integers.shape, 43), 0, AttentionDesign(integers.shape, 8)
    for count, cycles in zip(calls, [simulated.cycles, *simulated.later_cycles], strict=False):
        estimated = attention_cycles(design, count, MemoryPace(1 / share, latency), stages, past)
        assert estimated.total == pytest.approx(cycles, rel=most)
        past += count
    named = {(channel.name, channel.depth) for channel in simulated.channels}
    assert named == {(channel.name, channel.depth) for channel in attention_channels(design)}
    assert {process.name for process in simulated.processes} < set(PROCESSES)


SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 4, "n_shared_experts": 1, "n_routed_experts": 8,
    "num_experts_per_tok": 2, "first_k_dense_replace": 1, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "v_head_dim": 12,
    "qk_nope_head_dim": 16, "n_group": 4, "topk_group": 2, "max_position_embeddings": 128,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "mscale": 0.707, "mscale_all_dim": 1.0,
    "beta_fast": 32, "beta_slow": 1, "rope_theta": 10000.0,
}  # fmt: skip


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("DeepseekV3", {"q_lora_rank": 24}),
        ("DeepseekV3", {"q_lora_rank": None, "rope_scaling": YARN}),
        ("DeepseekV2", {"q_lora_rank": 24, "topk_method": "greedy", "rope_scaling": YARN}),
        ("DeepseekV2", {"q_lora_rank": None, "topk_method": "greedy", "v_head_dim": 24}),
    ],
)
def test_models_of_transformers_are_one_design(kind, changes, tmp_path):
    """Exported models with a cache of latents become one design. Most of the logits' noise comes from near ties, which
    send tokens to other experts."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers", minversion="5.0")
    torch.manual_seed(0)
    module = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**SIZES | changes))
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, parameter.shape[-1] ** -0.5)
    module.eval().save_pretrained(tmp_path)
    model = import_model(tmp_path)
    pipeline.run(model, pipeline.parse("O2"))
    ids = np.random.default_rng(0).integers(0, 64, (3, 33))
    options = HlsOptions({"input_ids": ids}, max_tokens=24, max_length=33)
    (project,) = HlsTarget.create("hls:u55c", options).compile(model).projects
    kinds = [layer["kind"] for layer in project.report["estimate"]["cycles"]["layers"]]
    assert kinds[:5] == ["attention", "feed-forward", "attention", "experts", "head"]
    assert project.report["model_outputs"]["logits"]["decibels"] > 10
    estimate = project.report["estimate"]
    timed = simulate_timed(project.files, memory_share=estimate["ports"]["share"], pipeline_depth=estimate["stages"])
    assert "0 differences" in timed.output
    for call in timed_calls(project.report["calls"], timed, len(kinds)):
        assert call["cycles"] == pytest.approx(call["simulated"], rel=0.06)
