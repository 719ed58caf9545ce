"""Normalisation: integers against floats, and generated C++ against integers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from moec.common.errors import UnsupportedError
from moec.ir.dialect import ExpertsSpec, RouteSpec
from moec.simulators.hls.simulator import simulate_timed
from moec.targets.hls.design.normalization import ROOT_FIRST, FloatNorm, inverse_roots, quantize_norm, stream_scale_for
from moec.targets.hls.moe.quality import compare, signal_to_noise
from moec.targets.hls.moe.quantize import quantize, scale_for

from .layers import float_block, project, tokens_for

SMALL = {"lanes_in": 8, "lanes_out": 8, "hidden_tile": 16}


def norm_of(kind, width, epsilon=1e-5):
    random = np.random.default_rng(11)
    weight, bias = random.normal(1, 0.5, width).astype(np.float32), random.normal(0, 0.3, width).astype(np.float32)
    return FloatNorm(kind, weight, bias if kind == "layer" else np.zeros_like(bias), epsilon)


def both(norm, tokens):
    """Tokens normalised in floats, and in integers converted back to floats."""
    expected = norm.run(tokens)
    stream, scale = stream_scale_for(tokens), scale_for(expected, 8)
    steps = np.round(tokens / stream).astype(np.int64)
    return expected, quantize_norm("block", norm, stream, scale).run(steps) * scale


@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("width", [3, 33, 192, 4096])
def test_integers_are_as_good_as_rounding_to_int8(kind, width):
    tokens = np.random.default_rng(1).normal(0.3, 2, (40, width)).astype(np.float32)
    norm = norm_of(kind, width)
    expected, actual = both(norm, tokens)
    rounding = scale_for(expected, 8)
    reachable = np.clip(np.round(expected / rounding), -127, 127) * rounding
    assert signal_to_noise(expected, actual) > signal_to_noise(expected, reachable) - 1


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_tokens_of_all_sizes_in_one_call(kind):
    sizes = np.logspace(-3, 0, 13, dtype=np.float32)[:, None]
    tokens = np.random.default_rng(2).normal(size=(13, 64)).astype(np.float32)
    expected, actual = both(norm_of(kind, 64), sizes * tokens)
    assert signal_to_noise(expected, actual) > 30


def test_tokens_without_variance_become_the_bias():
    norm = norm_of("layer", 16)
    expected, actual = both(norm, np.full((3, 16), 5, np.float32))
    np.testing.assert_allclose(expected, np.tile(norm.bias, (3, 1)), atol=1e-5)
    assert signal_to_noise(expected, actual) > 30


@pytest.mark.parametrize("factor", [1e-4, 0.01, 100])
def test_biases_much_larger_or_smaller_than_weights(factor):
    norm = norm_of("layer", 64)
    norm = dataclasses.replace(norm, weight=norm.weight * np.float32(factor))
    expected, actual = both(norm, np.random.default_rng(3).normal(size=(20, 64)).astype(np.float32))
    assert signal_to_noise(expected, actual) > 35


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_extremes_of_int16(kind):
    steps = np.array([[-32768] * 8, [32767] * 8, [32767, -32768] * 4, [0] * 7 + [32767], [0] * 8])
    actual = quantize_norm(
        "block", FloatNorm(kind, np.ones(8, np.float32), np.zeros(8, np.float32), 0.0), 1.0, 1 / 32
    ).run(steps)
    level = [0] * 8 if kind == "layer" else [-32] * 8
    assert actual[0].tolist() == level
    assert actual[1].tolist() == [-number for number in level]
    assert actual[2].tolist() == [32, -32] * 4
    assert actual[3, -1] == (85 if kind == "layer" else 91)  # the root of 7, or of 8, times 32
    assert not actual[4].any()


def test_the_table_of_inverse_roots():
    entries = np.arange(ROOT_FIRST, 2048)
    exact = 65536 / np.sqrt(entries / ROOT_FIRST)
    assert np.abs(inverse_roots()[ROOT_FIRST:] / exact - 1).max() < 2**-10
    assert inverse_roots().max() < 1 << 16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epsilon": 1e12}, "epsilon 1e.12 .* larger than any variance"),
        ({"bias": np.full(8, 1e9, np.float32)}, "does not fit"),
    ],
)
def test_numbers_that_no_integer_can_say(change, message):
    norm = dataclasses.replace(FloatNorm("rms", np.ones(8, np.float32), np.zeros(8, np.float32), 1e-5), **change)
    with pytest.raises(UnsupportedError, match=message):
        quantize_norm("block", norm, 1e-3, 0.02)


NORMALIZED = [
    ("layer", RouteSpec(2), ExpertsSpec("gelu", "none"), SMALL),
    ("rms", RouteSpec(2, "sigmoid", scale=2.5), ExpertsSpec("silu", "separate"), {"router_lanes": 8}),
]


@pytest.mark.nightly  # test_estimate_simulated.py simulates a normalised block, and its padding, in every run
@pytest.mark.parametrize(("kind", "routing", "experts", "design"), NORMALIZED)
def test_a_block_with_a_residual_equals_the_reference(kind, routing, experts, design):
    """A width of 40 is padded; padding must not count in means and variances."""
    block = dataclasses.replace(float_block(routing, experts), norm=norm_of(kind, 40))
    integers = quantize(block, tokens_for(block, 64), most_tokens=16)
    for count in (13, 1, 0):
        files = project(integers, integers.quantized(tokens_for(block, count)), **design)
        results = [simulate_timed(files, fifo_depths=depth) for depth in (None, 1)]
        assert all(f"PASS: {count} tokens" in result.output for result in results)
    quality = compare(block, integers, tokens_for(block, 64))
    assert quality.agreement > 0.97
    assert quality.decibels["tokens"] > 35
