"""The integer reference of whole models, against floats with the same weights."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from moec.targets.hls.model import reference
from moec.targets.hls.model.plan import Patches, Shifts
from moec.targets.hls.model.shared_shifts import least_bits, smallest_shifts, with_shifts
from moec.targets.hls.moe.quality import signal_to_noise
from moec.targets.hls.moe.quantize import quantize

from .layers import tokens_for
from .model_layers import STREAM_SCALE, feed_forward, plan


def image_of(model, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, model.patches.shape)


def test_a_model_runs_layer_by_layer():
    model = plan()
    actual = reference.run(model, model.input_steps(image_of(model)))
    assert [stream.shape for stream in actual.streams] == [(5, 32)] * 5
    assert (actual.output.shape, actual.output.dtype) == ((1, 10), np.int16)
    assert len(np.unique(actual.output)) > 5


@pytest.mark.parametrize("pool", ["none", "first", "mean"])
def test_a_head_is_a_product_of_normalised_tokens(pool):
    model = plan(pool=pool)
    (head,) = model.heads
    stream = tokens_for(feed_forward(32, 48), 5)
    actual = reference.run_linear(head, np.round(stream / STREAM_SCALE).astype(np.int16)) * head.output_scale
    steps = head.input_scale * head.down.multipliers.values[0] * head.output_scale / head.input_scale
    weights = head.down.weights[0] * (steps / head.input_scale * 2.0**-head.down.multipliers.shift)[:, None]
    bias = head.down.biases[0] * head.down.multipliers.values[0] * 2.0**-head.down.multipliers.shift * head.output_scale
    normal = (stream - stream.mean(axis=1, keepdims=True)) / stream.std(axis=1, keepdims=True)
    logits = normal @ weights.T + bias
    expected = {"none": logits, "first": logits[:1], "mean": logits.mean(axis=0, keepdims=True)}[pool]
    assert actual.shape == expected.shape == (model.output_rows, 10)
    assert (signal_to_noise(expected, actual) or 0) > 30


def test_a_dense_layer_is_a_shared_expert_alone():
    block = feed_forward(32, 48)
    tokens = tokens_for(block, 20)
    integers = quantize(block, tokens, most_tokens=20)
    assert (integers.shape.experts, integers.shape.slots, integers.shape.all_experts) == (0, 0, 1)
    actual = reference.run_layer(integers, integers.quantized(tokens)) * integers.output_scale
    assert (signal_to_noise(block.run(tokens).output, actual) or 0) > 30


def test_an_image_is_cut_into_patches_and_saturated():
    places = np.array([[-1, -1], [3, 2], [1, 0]], np.int32)
    patches = Patches((2, 2), places, 0.5, 1.0)
    assert patches.of(np.array([[1, 2], [-1000, 1000]])).tolist() == [[0, 0], [127, -128], [2, 0]]


def test_all_layers_take_the_smallest_shift_of_each_role():
    model = plan()
    shifts = smallest_shifts(model.layers)
    assert model.shifts == Shifts(**shifts)
    assert model.shifts.hidden is None
    other = dataclasses.replace(model, heads=(with_shifts(model.heads[0], {**shifts, "down": shifts["down"] - 1}),))
    with pytest.raises(ValueError, match=r"different shifts: \{'down'"):
        _ = other.shifts
    assert least_bits(model.layers) >= 10


def test_fewer_bits_of_multipliers_hardly_change_a_block():
    block = feed_forward(32, 48)
    tokens = tokens_for(block, 20)
    integers = quantize(block, tokens, most_tokens=20)
    own = smallest_shifts([integers])
    steps = integers.quantized(tokens)
    exact = reference.run_layer(integers, steps)
    fewer = with_shifts(integers, {role: shift - 3 for role, shift in own.items()})
    assert fewer.up.multipliers.values.max() < 1 << 13
    assert (signal_to_noise(exact, reference.run_layer(fewer, steps)) or 99) > 45
