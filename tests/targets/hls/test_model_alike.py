"""Conversion of layers that need different hardware to hardware that they share."""

from __future__ import annotations

import numpy as np

from moec.targets.hls.model.alike import made_alike
from moec.targets.hls.model.shared_shifts import smallest_shifts, with_shifts
from moec.targets.hls.moe import quality, reference
from moec.targets.hls.moe.quantize import QuantizedBlock

from .layers import in_groups, quantized, tokens_for
from .model_layers import feed_forward, gated_block, moe_block, sigmoid_block


def alike(*blocks: QuantizedBlock) -> list[QuantizedBlock]:
    layers = made_alike(blocks)
    shifts = smallest_shifts(layers)
    return [with_shifts(layer, shifts) for layer in layers if isinstance(layer, QuantizedBlock)]


def test_units_beside_gated_ones_stay_what_they_are():
    dense, gated = quantized(feed_forward(32, 24)), quantized(gated_block(32))
    dense_then, gated_then = alike(dense, gated)
    assert dense_then.shape.gated
    tokens = dense.quantized(tokens_for(feed_forward(32, 24), 33))
    before = dict(zip(("plain", "shared"), (dense, dense_then), strict=True))
    hidden = {name: reference.run(one, tokens).hidden for name, one in before.items()}
    assert np.abs(hidden["plain"] - hidden["shared"]).max() <= 1  # multipliers of a shared shift have fewer bits
    assert (hidden["plain"] != hidden["shared"]).mean() < 0.05
    (alone,) = made_alike([dense])
    np.testing.assert_array_equal(reference.run(alone, tokens).output, reference.run(dense, tokens).output)
    multiplier = gated_then.hidden_multiplier
    assert int(multiplier.values[0]).bit_length() >= 14


def test_channels_beside_groups_lose_little():
    plain, grouped = moe_block(80, 48), gated_block(80, group=32)
    alone = quantized(plain)
    then, other = alike(alone, quantized(grouped))
    assert (then.shape.group, other.shape.group, then.shape.weight_bits) == (32, 32, 8)
    tokens = tokens_for(plain, 64)
    for tensor in ("hidden", "results"):
        ours, theirs = (quality.compare(plain, one, tokens).decibels[tensor] for one in (then, alone))
        assert ours > theirs - 0.5


def test_groups_become_the_smallest():
    blocks = [quantized(gated_block(96, group=group)) for group in (64, 32)]
    tokens = blocks[0].quantized(tokens_for(gated_block(96), 20))
    larger, _ = made_alike(blocks)
    assert isinstance(larger, QuantizedBlock)
    assert larger.down.multipliers.values.shape[2] == 2
    noise = quality.signal_to_noise(reference.run(blocks[0], tokens).results, reference.run(larger, tokens).results)
    assert noise is None or noise > 40


def test_a_router_without_a_bias_has_zeros_beside_one_with():
    biased, plain = quantized(gated_block(32)), quantized(sigmoid_block(32))
    _, then = made_alike([biased, plain])
    assert isinstance(then, QuantizedBlock)
    np.testing.assert_array_equal(then.choice_bias, np.zeros(3))
    tokens = plain.quantized(tokens_for(sigmoid_block(32), 50))
    chosen = [reference.run(one, tokens).chosen for one in (plain, then)]
    assert (chosen[0] == chosen[1]).mean() > 0.95


def test_int4_beside_int8_is_the_same_in_wider_numbers():
    for group in (0, 32):
        narrow = quantized(in_groups(gated_block(64), 4, group))
        tokens = narrow.quantized(tokens_for(gated_block(64), 20))
        wide, _ = made_alike([narrow, quantized(in_groups(gated_block(64), 8, group))])
        assert isinstance(wide, QuantizedBlock)
        assert wide.shape.weight_bits == 8
        assert wide.up.weights.min() == -128 or group == 0
        np.testing.assert_array_equal(reference.run(wide, tokens).output, reference.run(narrow, tokens).output)
