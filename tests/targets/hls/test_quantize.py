"""Constants of the hardware for unusual layers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from moec.common.errors import UnsupportedError
from moec.ir.dialect import ExpertsSpec, RouteSpec
from moec.simulators.hls.simulator import simulate_functionally
from moec.targets.hls.design.projection import Multipliers
from moec.targets.hls.moe import quality
from moec.targets.hls.moe.quantize import quantize

from .layers import float_block, project, quantized, tokens_for

RELU = ExpertsSpec("relu", "none")


def test_units_that_training_switched_off_keep_their_biases():
    block = float_block(RouteSpec(2), RELU)
    block.up[1, 3] = block.down[2, 5] = block.router[0] = 1e-12
    block.up[3] = block.down[3] = 0
    block.up_bias[3, :2] = block.down_bias[3, :2] = 0
    integers = quantized(block)
    assert max(integers.up.sum_bits, integers.down.sum_bits) <= 27
    assert quality.compare(block, integers, tokens_for(block, 64)).decibels["results"] > 25


def test_a_large_bias_of_the_router_fits():
    block = float_block(RouteSpec(2), RELU)
    block.router[:] *= 1e-6
    block.router_bias[2] = 300
    assert np.abs(quantized(block).router_bias).max() < 1 << 31


@pytest.mark.parametrize("scale", [0.0, 0.25, 0.5, 0.500001])
def test_a_gate_of_shared_experts_that_does_not_fit_is_refused(scale):
    block = float_block(RouteSpec(2, scale=scale or 1e6), RELU, shared=1)
    with pytest.raises(UnsupportedError, match="the gate 1 / scale"):
        quantize(block, tokens_for(block, 8), most_tokens=8)


@pytest.mark.parametrize("scale", [1e9, 1e-9])
def test_scales_without_a_multiplier_are_refused(scale):
    with pytest.raises(UnsupportedError, match="no 16-bit multiplier"):
        Multipliers.of(np.array([scale]))


@pytest.mark.nightly
def test_a_shift_beyond_the_width_of_the_product_rounds_right():
    """Results of both signs far below one step of the output become zeros."""
    block = quantized(float_block(RouteSpec(2), RELU, width=8, hidden=8, seed=3))
    values = np.full_like(block.down.multipliers.values, 40000)
    down = dataclasses.replace(block.down, multipliers=Multipliers(values, 39))
    block = dataclasses.replace(block, down=down)
    steps = np.random.default_rng(0).integers(-127, 128, (7, 8))
    assert "PASS" in simulate_functionally(project(block, steps, lanes_in=8, lanes_out=8, hidden_tile=8))
