"""Estimated costs of attention blocks, and their cycles against the timed simulation."""

from __future__ import annotations

import dataclasses

import pytest

from moec.common.errors import UnsupportedError
from moec.simulators.hls.simulator import simulate_timed
from moec.targets.hls.attention.channels import attention_channels
from moec.targets.hls.attention.cycles import attention_cycles, groups_of_queries
from moec.targets.hls.attention.packing import calls_of
from moec.targets.hls.attention.quantize import shape_of
from moec.targets.hls.attention.resources import attention_dsps, attention_memories, estimate_attention
from moec.targets.hls.attention_block import choose_attention
from moec.targets.hls.design.attention import AttentionDesign, AttentionShape
from moec.targets.hls.design.channels import PROCESSES
from moec.targets.hls.design.numbers import USUAL_STAGES
from moec.targets.hls.hardware.cycles import MemoryPace
from moec.targets.hls.hardware.parts import find_part
from moec.targets.hls.moe.exploration import Constraints

from .test_attention import SINKS, decoder, files_of, float_attention, quantized, tokens_for

M3VIT = AttentionShape(tokens=197, width=192, heads=3, head_width=64, norm="layer")


@pytest.mark.parametrize(
    ("floats", "count", "share", "latency"),
    [
        (float_attention, 9, 1.0, 0),
        pytest.param(float_attention, 9, 0.25, 64, marks=pytest.mark.nightly),
        pytest.param(float_attention, 21, 1.0, 0, marks=pytest.mark.nightly),
        (float_attention, 21, 0.25, 64),
        pytest.param(decoder, 21, 1.0, 0, marks=pytest.mark.nightly),
        pytest.param(decoder, 21, 0.25, 64, marks=pytest.mark.nightly),
        pytest.param(lambda: decoder(joint=True), 21, 1.0, 0, marks=pytest.mark.nightly),
        pytest.param(lambda: decoder(joint=True), 21, 0.25, 64, marks=pytest.mark.nightly),
        pytest.param(lambda: decoder(window=4, sinks=SINKS), 21, 1.0, 0, marks=pytest.mark.nightly),
    ],
)
def test_estimates_agree_with_the_simulation(floats, count, share, latency):
    block = quantized(floats(), most_tokens=70)  # as in test_attention.py, so that one program is compiled for both
    files = files_of(block, block.quantized(tokens_for(floats(), 1, count)[0]), lanes=8)
    simulated = simulate_timed(files, memory_share=share, memory_latency=latency)
    design, window = AttentionDesign(block.shape, 8), block.window
    estimated = attention_cycles(design, count, MemoryPace(1 / share, latency), window=window)
    assert estimated.total == pytest.approx(simulated.cycles, rel=0.04)
    deep = attention_cycles(design, count, MemoryPace(1 / share, latency), USUAL_STAGES, window=window)
    in_stages = simulate_timed(files, memory_share=share, memory_latency=latency, pipeline_depth=USUAL_STAGES)
    assert deep.total == pytest.approx(in_stages.cycles, rel=0.07)
    named = {(channel.name, channel.depth) for channel in simulated.channels}
    assert named == {(channel.name, channel.depth) for channel in attention_channels(AttentionDesign(block.shape, 8))}
    assert {process.name for process in simulated.processes} < set(PROCESSES)


def test_the_products_of_a_large_block_set_its_pace():
    cycles = attention_cycles(AttentionDesign(M3VIT), 197, MemoryPace())
    assert cycles.products == 197 * 3 * 192 * 192 // 16**2
    assert cycles.bound_by == "products"
    assert cycles.products / cycles.total > 0.9


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("joint", "share", "latency", "stages", "most"),
    [
        pytest.param(False, 1.0, 0, 0, 0.01, marks=pytest.mark.nightly),
        (False, 0.25, 64, USUAL_STAGES, 0.07),
        pytest.param(False, 1.0, 64, 20, 0.03, marks=pytest.mark.nightly),
        pytest.param(True, 1.0, 0, 0, 0.03, marks=pytest.mark.nightly),
        pytest.param(True, 0.25, 64, USUAL_STAGES, 0.05, marks=pytest.mark.nightly),
        pytest.param(True, 1.0, 64, 20, 0.05, marks=pytest.mark.nightly),
    ],
)
def test_estimates_of_calls_with_a_cache_agree_with_the_simulation(joint, share, latency, stages, most):
    """Calls have 32 tokens, 8 after them, and then single tokens."""
    floats = decoder(32, width=64, joint=joint)
    block = quantized(floats, most_tokens=32, cached=43)
    files = files_of(block, block.quantized(tokens_for(floats, 1, 43)[0]), lanes=8)
    simulated = simulate_timed(files, memory_share=share, memory_latency=latency, pipeline_depth=stages)
    calls, past = calls_of(block.shape, 43), 0
    assert calls == [32, 8, 1, 1, 1]
    for count, cycles in zip(calls, [simulated.cycles, *simulated.later_cycles], strict=False):
        pace = MemoryPace(1 / share, latency)
        estimated = attention_cycles(AttentionDesign(block.shape, 8), count, pace, stages, past)
        assert estimated.total == pytest.approx(cycles, rel=most)
        past += count
    named = {(channel.name, channel.depth) for channel in simulated.channels}
    assert named == {(channel.name, channel.depth) for channel in attention_channels(AttentionDesign(block.shape, 8))}
    assert {process.name for process in simulated.processes} < set(PROCESSES)


def steps_of_scores(design, *call, **window):
    """Steps in which the queries of a head are scored."""
    return design.chunks * sum(groups_of_queries(design, *call, **window))


def test_a_causal_block_scores_half_as_many_keys():
    many = AttentionShape(tokens=2000, width=64, heads=1, head_width=64, norm="rms")
    scores = [
        steps_of_scores(AttentionDesign(dataclasses.replace(many, causal=causal)), 2000) for causal in (True, False)
    ]
    assert scores[0] / scores[1] == pytest.approx(0.504, abs=1e-3)


def test_a_window_bounds_what_is_scored():
    """A window of the last 100 of 2000 keys is scored in whole groups of 16: the query's own group, and seven before
    it, since the first of these may hold a single key of the window."""
    design = AttentionDesign(AttentionShape(2000, 64, 1, 64, "rms", causal=True, windowed=True))
    assert steps_of_scores(design, 1, 1999, window=100) == 8 * design.chunks
    assert steps_of_scores(design, 2000, window=100) == steps_of_scores(design, 2000, window=113)
    assert steps_of_scores(design, 2000, window=2000) == steps_of_scores(design, 2000)


def test_slow_memory_and_small_arrays_bind_otherwise():
    few = dataclasses.replace(M3VIT, tokens=2)
    assert attention_cycles(AttentionDesign(few), 2, MemoryPace()).bound_by == "weights"
    many = AttentionShape(tokens=2000, width=64, heads=1, head_width=64, norm="rms")
    assert attention_cycles(AttentionDesign(many), 2000, MemoryPace()).bound_by == "scores"


def test_arrays_take_a_dsp_for_two_products():
    dsps = attention_dsps(AttentionDesign(M3VIT))
    assert dsps["score_keys"] == dsps["mix_values"] == 16 * 16 // 2
    assert dsps["product_up"] == 16 * 16 // 2 + 16


def test_logic_by_hand():
    """The LUTs of four arrays of 16 x 16 products, four of which are summed in a word, of rounding the results of each
    array and the weights of keys, of the divider, control and masters."""
    actual = estimate_attention(AttentionDesign(M3VIT), find_part("zcu102"), 300)
    arrays, rounding, reciprocal = 4 * 8 * (4 * (432 + 7 * 27) // 3), 5 * 16 * 26, 20 * 20
    logic = arrays + rounding + reciprocal + 3000 + 4 * 1100
    assert actual.resources.lut == logic + sum(memory.luts for memory in actual.memories)


@pytest.mark.parametrize("block", [None, decoder(joint=True), decoder(window=4, sinks=SINKS)])
def test_every_process_of_the_estimate_is_one_of_the_block(block):
    design = AttentionDesign(M3VIT if block is None else shape_of(block, 21))
    processes = {end for channel in attention_channels(design) for end in (channel.producer, channel.consumer)}
    assert {memory.process for memory in attention_memories(design)} | set(attention_dsps(design)) <= processes
    for channel in attention_channels(design):
        assert PROCESSES.index(channel.producer) < PROCESSES.index(channel.consumer)


def test_the_fastest_design_that_fits_is_chosen():
    part = find_part("zcu102")
    assert choose_attention(M3VIT, part, Constraints()).design.lanes == 16  # 32 take more than 80% of its DSPs
    assert choose_attention(M3VIT, part, Constraints(max_dsp=300)).design.lanes == 8
    assert choose_attention(M3VIT, part, Constraints(), (8, 16)).design.lanes == 8
    assert choose_attention(M3VIT, find_part("u280"), Constraints()).design.lanes == 32


def test_what_does_not_fit_is_said():
    with pytest.raises(UnsupportedError, match="no design fits: with 8 lanes it needs 204 DSPs of 100 on zcu102"):
        choose_attention(M3VIT, find_part("zcu102"), Constraints(max_dsp=100))


def test_an_estimate_is_plain_data():
    actual = estimate_attention(AttentionDesign(M3VIT), find_part("zcu102"), 300).as_dict()
    assert actual["cycles"]["total"] > actual["cycles"]["products"] > 0
    assert actual["resources"]["dsp"] == sum(actual["dsp_by_process"].values())
