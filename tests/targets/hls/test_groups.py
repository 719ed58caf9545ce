"""Weights in groups of inputs that share a scale: C++ against the integer reference, and that against floats."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from moec.common.errors import UnsupportedError
from moec.ir.dialect import ExpertsSpec, RouteSpec
from moec.simulators.hls.simulator import SimulationError, simulate_functionally, simulate_timed
from moec.targets.hls.design.experts import Design
from moec.targets.hls.design.numbers import USUAL_STAGES
from moec.targets.hls.hardware.cycles import MemoryPace, count_cycles
from moec.targets.hls.moe import quality, reference
from moec.targets.hls.moe.exploration import resources_of

from ...products import thinned
from .layers import float_block, in_groups, project, quantized, tokens_for

SWIGLU, GELU = ExpertsSpec("silu", "separate"), ExpertsSpec("gelu", "none")
nightly = pytest.mark.nightly

VARIANTS = [
    pytest.param(
        SWIGLU, 4, 32, {"width": 100, "hidden": 70}, {"hidden_tile": 32}, id="sizes that are no groups", marks=nightly
    ),
    pytest.param(
        *(GELU, 8, 32, {}, {"lanes_in": 8, "lanes_out": 8, "hidden_tile": 32}),
        id="int8, a beat is four groups",
        marks=nightly,
    ),
    pytest.param(SWIGLU, 4, 32, {"shared": 2}, {"lanes_in": 32, "lanes_out": 32, "hidden_tile": 64}, id="two beats"),
    pytest.param(GELU, 4, 64, {"width": 130, "hidden": 130}, {"hidden_tile": 64}, id="groups of 64", marks=nightly),
    pytest.param(SWIGLU, 4, 128, {"width": 192}, {"hidden_tile": 128}, id="groups of 128", marks=nightly),
    pytest.param(GELU, 8, 128, {"width": 300}, {"hidden_tile": 128}, id="int8 in groups of 128", marks=nightly),
    pytest.param(SWIGLU, 4, 0, {}, {"hidden_tile": 16}, id="stored by channel", marks=nightly),
]


@pytest.mark.parametrize(("experts", "bits", "group", "sizes", "design"), VARIANTS)
def test_c_simulation_equals_the_reference(experts, bits, group, sizes, design):
    block = in_groups(float_block(RouteSpec(2), experts, **sizes), bits, group)
    integers = quantized(block, weight_bits=bits)
    assert (integers.shape.weight_bits, integers.shape.group) == (bits, group)
    files = project(integers, integers.quantized(tokens_for(block, 13)), **design)
    assert "PASS: 13 tokens" in simulate_functionally(files)


@pytest.mark.parametrize("group", [0, 32, 64, 128])
def test_integers_are_taken_as_they_stand(group):
    """Weights are not rounded a second time, so the noise is at most that of quantising the same numbers as floats."""
    block = in_groups(float_block(RouteSpec(2), GELU, width=200, hidden=96), 4, group)
    integers, tokens = quantized(block), tokens_for(block, 64)
    steps = np.repeat(block.stored.of["up"], group or 200, axis=2)[..., :200]
    np.testing.assert_array_equal(integers.up.weights * steps, block.up)
    in_floats = quantized(dataclasses.replace(block, stored=None))
    for tensor in ("hidden", "results"):
        ours, theirs = (quality.compare(block, one, tokens).decibels[tensor] for one in (integers, in_floats))
        assert ours > theirs - 0.5


def test_groups_lose_less_than_channels():
    block = float_block(RouteSpec(2), SWIGLU, width=256, hidden=128)
    tokens = tokens_for(block, 64)

    def results(integers) -> float:
        return quality.compare(block, integers, tokens).decibels["results"]

    assert results(quantized(in_groups(block, 4, 32))) > results(quantized(block, weight_bits=4)) + 2


def test_experts_in_floats_are_rounded_beside_the_others():
    block = in_groups(float_block(RouteSpec(2), GELU), 4, 32, floats=[1])
    assert quantized(block, weight_bits=4).shape.weight_bits == 4
    integers = quantized(block)
    assert (integers.shape.weight_bits, integers.shape.group) == (8, 32)
    assert np.abs(integers.up.weights[0]).max() <= 8 < np.abs(integers.up.weights[1]).max()


@nightly
def test_experts_in_floats_beside_the_others_are_simulated():
    block = in_groups(float_block(RouteSpec(2), GELU), 4, 32, floats=[1])
    integers = quantized(block)
    files = project(integers, integers.quantized(tokens_for(block, 5)), hidden_tile=32)
    assert "PASS" in simulate_functionally(files)


def test_a_unit_of_zeros_takes_no_bits_from_the_multipliers_of_others():
    block = float_block(RouteSpec(2), GELU)
    with_zeros = dataclasses.replace(block, up=np.array(block.up))
    with_zeros.up[1] = 0
    for variant in (with_zeros, in_groups(with_zeros, 4, 32)):
        assert np.abs(quantized(variant).up.multipliers.values).max() > (16383 if variant.stored else 32767)
        assert quality.compare(variant, quantized(variant), tokens_for(block, 64)).decibels["results"] > 28


@thinned("name", ["SUM_BITS_UP", "SUM_BITS_DOWN", "TOTAL_BITS_UP", "TOTAL_BITS_DOWN"], 4)
@pytest.mark.nightly
def test_sums_and_totals_are_as_wide_as_the_weights_demand_and_no_wider(name):
    """These weights and inputs reach the widest sums possible; with one bit less, C simulation fails."""
    block = in_groups(float_block(RouteSpec(2), ExpertsSpec("relu", "none"), width=64, hidden=64), 4, 32)
    integers = quantized(block)
    extremes = {
        part: dataclasses.replace(
            getattr(integers, part),
            weights=np.full_like(getattr(integers, part).weights, -7),
            biases=np.zeros_like(getattr(integers, part).biases),
        )
        for part in ("up", "down")
    }
    hidden = np.arange(-128, 128) if name.endswith("UP") else np.full(256, -128)
    integers = dataclasses.replace(integers, **extremes, activation=hidden)
    files = project(integers, np.full((3, 64), -128), hidden_tile=32)
    assert "PASS" in simulate_functionally(files)
    config = files["src/model_config.h"].decode()
    part = integers.up if name.endswith("UP") else integers.down
    bits = part.sum_bits if name.startswith("SUM") else part.total_bits
    assert f" {name} = {bits};" in config
    files["src/model_config.h"] = config.replace(f" {name} = {bits};", f" {name} = {bits - 1};").encode()
    with pytest.raises(SimulationError):
        simulate_functionally(files)


@pytest.mark.nightly
def test_estimates_agree_with_the_simulation():
    """Sizes are no multiples of a group, and the testbench finds the results of the integer reference."""
    block = in_groups(float_block(RouteSpec(2), SWIGLU, 8, 100, 118), 4, 32)
    integers = quantized(block, most_tokens=40)
    vectors = integers.quantized(tokens_for(block, 40))
    files = project(integers, vectors, hidden_tile=32)
    loads = reference.run(integers, vectors).loads.tolist()
    design = Design(integers.shape, hidden_tile=32)
    for share in (1, 0.125):
        cycles = count_cycles(design, loads, MemoryPace(1 / share, 64))
        assert cycles.total == pytest.approx(
            simulate_timed(files, memory_share=share, memory_latency=64).cycles, rel=0.005
        )
        deep = count_cycles(design, loads, MemoryPace(1 / share, 64), USUAL_STAGES).total
        simulated = simulate_timed(files, memory_share=share, memory_latency=64, pipeline_depth=USUAL_STAGES).cycles
        assert deep == pytest.approx(simulated, rel=0.01)


def test_multipliers_are_counted():
    """Multipliers of int4 weights in groups of 32 take an eighth more beats, and no more DSPs."""
    block = float_block(RouteSpec(2), GELU, width=96, hidden=32)
    shape = quantized(in_groups(block, 4, 0)).shape
    plain, grouped = Design(shape, hidden_tile=32), Design(dataclasses.replace(shape, group=32), hidden_tile=32)
    assert grouped.multiplier_beats_up * 8 == grouped.weight_beats_up
    assert grouped.multiplier_beats_down * 8 == grouped.weight_beats_down
    assert resources_of(grouped).dsp == resources_of(plain).dsp
    assert resources_of(grouped).lut > resources_of(plain).lut


def test_tiles_that_cut_groups_are_no_design():
    shape = dataclasses.replace(quantized(float_block(RouteSpec(2), GELU)).shape, group=64)
    assert Design(shape, hidden_tile=64).why_not() is None
    assert "no multiple of a group of 64" in str(Design(shape, hidden_tile=32).why_not())


def test_multiples_that_the_bits_do_not_hold_are_refused():
    block = in_groups(float_block(RouteSpec(2), GELU), 4, 32)
    block.up[0, 0, :32] = -8 * block.stored.of["up"][0, 0, 0]
    assert quantized(block).up.weights.min() == -8
    block.up[0, 0, :32] *= -1
    with pytest.raises(UnsupportedError, match="do not fit into 4 bits"):
        quantized(block)
