"""Generated C++ against the integer reference, compared bit for bit by the testbench."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from moec.ir.dialect import ExpertsSpec, RouteSpec
from moec.simulators.hls.simulator import SimulationError, simulate_functionally, simulate_timed
from moec.targets.hls.design.experts import Design
from moec.targets.hls.design.numbers import Fifos
from moec.targets.hls.hardware.cycles import count_cycles
from moec.targets.hls.moe import reference

from ...products import thinned
from .layers import float_block, project, quantized, tokens_for

RELU, GELU = ExpertsSpec("relu", "none"), ExpertsSpec("gelu", "none")
SWIGLU = ExpertsSpec("silu", "separate")
CLAMPED = ExpertsSpec("silu", "separate", alpha=1.702, limit=2.0, up_offset=1.0)
SMALL = {"lanes_in": 8, "lanes_out": 8, "hidden_tile": 16}
nightly = pytest.mark.nightly

VARIANTS = [
    pytest.param(RouteSpec(2), GELU, {}, {}, id="softmax of all, gelu"),
    pytest.param(RouteSpec(1, "softmax_topk"), RELU, {"width": 24, "hidden": 20}, SMALL, id="top 1, odd sizes"),
    pytest.param(
        RouteSpec(3, "sigmoid", normalize=True, scale=2.5, groups=3, groups_kept=2, group_score="sum_top2"),
        SWIGLU,
        {"biased_choice": True, "count": 6},
        SMALL,
        id="sigmoid, groups, bias, swiglu",
    ),
    pytest.param(RouteSpec(4, "softmax", normalize=True), CLAMPED, {}, {"hidden_tile": 16}, id="clamped swiglu"),
    pytest.param(RouteSpec(2, "softmax", scale=2.5), SWIGLU, {"shared": 2}, SMALL, id="shared experts"),
    pytest.param(
        RouteSpec(2, groups=2, groups_kept=1), RELU, {"count": 8}, {}, id="groups by their best", marks=nightly
    ),
    pytest.param(
        RouteSpec(2, "sigmoid"),
        GELU,
        {},
        {"lanes_in": 32, "lanes_out": 32, "hidden_tile": 32},
        id="32 lanes",
        marks=nightly,
    ),
    pytest.param(
        RouteSpec(8, "softmax_topk"), SWIGLU, {"count": 9}, {"router_lanes": 1}, id="top 8 of 9", marks=nightly
    ),
    pytest.param(
        RouteSpec(2), ExpertsSpec("tanh", "none"), {"width": 100, "hidden": 70}, {}, id="tanh, odd sizes", marks=nightly
    ),
]


@thinned("routing, experts, sizes, design", VARIANTS, 6)
@pytest.mark.parametrize("bits", [8, pytest.param(4, marks=nightly)])
def test_c_simulation_equals_the_reference(routing, experts, sizes, design, bits):
    block = float_block(routing, experts, **sizes)
    if bits == 4 and design.get("lanes_in") == 8:
        design = {"hidden_tile": 16}  # half a beat would be too little
    integers = quantized(block, weight_bits=bits)
    files = project(integers, integers.quantized(tokens_for(block, 13)), **design)
    assert "PASS: 13 tokens" in simulate_functionally(files)


@pytest.fixture(scope="module")
def layer():
    return quantized(float_block(RouteSpec(2), GELU))


def tokens_to_expert(block, expert: int, count: int) -> np.ndarray:
    """Tokens that maximise the logit of this expert."""
    return np.tile(np.sign(block.router[expert].astype(np.int64)) * 100, (count, 1))


def cases(block) -> dict[str, np.ndarray]:
    some = np.random.default_rng(3).integers(-127, 128, (16, block.shape.width))
    return {
        "no token": some[:0],
        "one token": some[:1],
        "as many as fit": some,
        "all to one expert": tokens_to_expert(block, 3, 16),
        "ties": np.zeros_like(some),
        "extremes": np.full_like(some, -128),
    }


@pytest.mark.parametrize("case", ["no token", "one token", "as many as fit", "all to one expert", "ties", "extremes"])
def test_timed_simulation_equals_the_reference(case, layer):
    files = project(layer, cases(layer)[case])
    result = simulate_timed(files)
    assert "PASS" in result.output
    assert simulate_timed(files, fifo_depths=1).cycles >= result.cycles


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("routing", "count", "design"),
    [
        pytest.param(
            *(RouteSpec(8, "softmax", normalize=True), 77, {"router_experts": 32, "router_lanes": 8}),
            id="top 8, a turn that is not full",
        ),
        pytest.param(
            *(RouteSpec(8, "softmax", normalize=True), 128, {"router_experts": 8, "router_lanes": 8}),
            id="top 8, many turns",
            marks=nightly,
        ),
        pytest.param(RouteSpec(1), 77, {"router_experts": 32}, id="top 1, softmax of all", marks=nightly),
        pytest.param(
            RouteSpec(8, "sigmoid", normalize=True, groups=8, groups_kept=4, group_score="sum_top2"),
            256,
            {"router_experts": 32, "router_lanes": 16},
            id="groups, more numbers than a byte has",
            marks=nightly,
        ),
    ],
)
def test_experts_in_turns(routing, count, design):
    """Tokens include one with equal logits of all experts, ties between the first and the last turn, and random ones;
    the last experts are busy."""
    block = float_block(routing, SWIGLU, count, 32, 16, shared=1)
    block.router[-32:] = block.router[:32]
    block.router_bias[-32:] = block.router_bias[:32]
    integers = quantized(block)
    tokens = integers.quantized(tokens_for(block, 16))
    tokens[:8] = np.sign(integers.router[-8:].astype(np.int64)) * 100
    tied = dataclasses.replace(integers, router_bias=np.zeros_like(integers.router_bias))
    for name, variant in (("ties of two", integers), ("ties of all", tied)):
        tokens[8] = 0
        result = simulate_timed(project(variant, tokens, hidden_tile=16, **design), pipeline_depth=20)
        assert "PASS: 16 tokens" in result.output, name


@pytest.mark.nightly
def test_a_router_in_turns_takes_as_long_as_estimated():
    block = float_block(RouteSpec(8, "softmax", normalize=True), GELU, 64, 64, 16)
    integers = quantized(block)
    tokens = integers.quantized(tokens_for(block, 16))
    loads = reference.run(integers, tokens).loads.tolist()
    route = {}
    for at_once in (None, 32, 8):
        design = {"hidden_tile": 16, "router_lanes": 4, "router_experts": at_once}
        result = simulate_timed(project(integers, tokens, **design), memory_latency=0, memories={})
        estimated = count_cycles(Design(integers.shape, **design), loads)
        assert estimated.total == pytest.approx(result.cycles, rel=0.03)
        route[at_once] = estimated.route
    assert route[8] > route[32] > 0


def test_experts_without_tokens_are_not_read(layer):
    names = ("all to one expert", "as many as fit")
    busy = [simulate_timed(project(layer, cases(layer)[name])) for name in names]
    beats = [next(channel.words for channel in timed.channels if channel.name == "beats_up") for timed in busy]
    assert beats[0] < beats[1]


def test_a_wrong_number_is_noticed(layer):
    files = project(layer, cases(layer)["as many as fit"])
    outputs = bytearray(files["data/outputs.bin"])
    outputs[5] ^= 1
    with pytest.raises(SimulationError) as error:
        simulate_functionally({**files, "data/outputs.bin": bytes(outputs)})
    assert error.value.kind == "mismatch"
    assert "FAIL: 16 tokens" in error.value.details


@nightly
def test_sums_are_as_wide_as_the_weights_demand_and_no_wider(layer):
    tokens = np.full((3, layer.shape.width), 127)
    narrow = dataclasses.replace(layer, up=dataclasses.replace(layer.up, weights=np.full_like(layer.up.weights, 127)))
    files = project(narrow, tokens)
    config = files["src/model_config.h"].decode()
    right = f"TOTAL_BITS_UP = {narrow.up.sum_bits};"
    assert right in config
    assert "PASS" in simulate_functionally(files)
    files["src/model_config.h"] = config.replace(right, f"TOTAL_BITS_UP = {narrow.up.sum_bits - 1};").encode()
    with pytest.raises(SimulationError):
        simulate_functionally(files)


@pytest.mark.nightly
def test_sums_wider_than_one_multiplier_takes():
    """The sums are of 8,320 inputs and weights at their largest values."""
    wide = quantized(float_block(RouteSpec(1), GELU, 2, 8320, 16), most_tokens=2)
    wide = dataclasses.replace(wide, up=dataclasses.replace(wide.up, weights=np.full_like(wide.up.weights, 127)))
    assert wide.up.sum_bits > 27
    tokens = np.stack([np.full(8320, 127), np.full(8320, -128)])
    files = project(wide, tokens, hidden_tile=16)
    assert "PASS: 2 tokens" in simulate_functionally(files)


@nightly  # in every run, the test above simulates with other depths
def test_results_depend_on_no_depth_of_a_channel(layer):
    files = project(layer, cases(layer)["as many as fit"], fifos=Fifos(2, 2, 2, 2, 2, 2, 2))
    assert "PASS" in simulate_timed(files).output
