"""The attention block in integers against floats, and in generated C++ against integers."""

from __future__ import annotations

import numpy as np
import pytest

from moec.errors import UnsupportedError
from moec.simulators.hls.simulator import SimulationError, simulate_timed
from moec.targets.hls.attention import reference as attention_reference
from moec.targets.hls.attention.design import AttentionDesign, AttentionShape
from moec.targets.hls.attention.float_block import FloatAttention
from moec.targets.hls.attention.project import attention_files
from moec.targets.hls.attention.quantize import QuantizedAttention, quantize_attention
from moec.targets.hls.lint.linter import lint
from moec.targets.hls.moe.quality import signal_to_noise
from moec.targets.hls.normalization import FloatNorm

SHAPE = AttentionShape(tokens=197, width=192, heads=3, head_width=64, norm="layer")


def float_attention(heads=2, head_width=8, width=24, kind="layer", sharpness=1.5, seed=0) -> FloatAttention:
    random = np.random.default_rng(seed)

    def normal(*shape, scale):
        return random.normal(0, scale, shape).astype(np.float32)

    norm = FloatNorm(kind, 1 + normal(width, scale=0.2), normal(width, scale=0.1 if kind == "layer" else 0), 1e-5)
    scales = (sharpness, sharpness, 1.0)
    rows = [
        (normal(heads, head_width, width, scale=one * width**-0.5), normal(heads, head_width, scale=0.1))
        for one in scales
    ]
    output = normal(width, heads * head_width, scale=(heads * head_width) ** -0.5)
    return FloatAttention(
        "attention",
        norm,
        head_width**-0.5,
        *(array for pair in rows for array in pair),
        output,
        normal(width, scale=0.1),
    )


def tokens_for(block, batch, count, seed=1):
    return np.random.default_rng(seed).normal(size=(batch, count, block.width)).astype(np.float32)


def quantized(block, most_tokens=21) -> QuantizedAttention:
    return quantize_attention(block, tokens_for(block, 4, 20), most_tokens=most_tokens)


def files_of(block, steps, **design):
    return attention_files(
        AttentionDesign(block.shape, **design), block, steps, name="attention", device="xczu9eg", clock=300
    )


@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize(("sharpness", "decibels"), [(0.1, 34), (1.5, 30), (4, 25)])
def test_integers_are_close_to_floats(kind, sharpness, decibels):
    """From heads that look at all tokens alike to heads that look at few: a step of a score weighs more there."""
    block = float_attention(heads=3, head_width=16, width=48, kind=kind, sharpness=sharpness)
    tokens = tokens_for(block, 4, 50)
    integers, floats = quantize_attention(block, tokens, most_tokens=50), block.run(tokens)
    for sequence, expected in zip(tokens, floats.output, strict=True):
        found = attention_reference.run(integers, integers.quantized(sequence)).output * integers.output_scale
        assert signal_to_noise(expected, found) > decibels


def test_the_best_key_has_the_largest_weight_and_equal_keys_equal_ones():
    block = quantized(float_attention())
    results = attention_reference.run(block, block.quantized(tokens_for(float_attention(), 1, 7)[0]))
    assert (results.weights.max(axis=2) == 255).all()
    alike = attention_reference.run(block, np.tile(np.arange(24) * 100, (7, 1)))
    assert (alike.weights == 255).all()


@pytest.mark.parametrize("value", [-32768, 0, 32767])
def test_extremes_of_int16_stay_in_range(value):
    block = quantized(float_attention())
    results = attention_reference.run(block, np.full((5, 24), value))
    assert results.output.dtype == np.int16
    assert np.abs(results.attended).max() <= 128


@pytest.fixture(scope="module")
def layer():
    return quantized(float_attention())


@pytest.mark.parametrize("count", [0, 1, 7, 9])
def test_timed_simulation_equals_the_reference(count, layer):
    """At depth 1, a process that waited for more than its own inputs would stop all others."""
    files = files_of(layer, layer.quantized(tokens_for(float_attention(), 1, count)[0]), lanes=8)
    declared, narrow = (simulate_timed(files, fifo_depths=depth) for depth in (None, 1))
    assert f"PASS: {count} tokens" in declared.output and f"PASS: {count} tokens" in narrow.output
    assert narrow.cycles >= declared.cycles


def test_a_wrong_number_is_noticed(layer):
    files = files_of(layer, layer.quantized(tokens_for(float_attention(), 1, 9)[0]), lanes=8)
    outputs = bytearray(files["data/outputs.bin"])
    outputs[40] ^= 1
    with pytest.raises(SimulationError) as error:
        simulate_timed({**files, "data/outputs.bin": bytes(outputs)})
    assert error.value.kind == "mismatch"


def test_the_generated_code_breaks_no_rule(layer):
    files = files_of(layer, layer.quantized(tokens_for(float_attention(), 1, 3)[0]), lanes=8)
    assert lint(files) == []


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("sizes", "design"),
    [
        pytest.param({"heads": 3, "head_width": 12, "width": 40, "kind": "rms"}, {"norm_lanes": 2}, id="odd heads"),
        pytest.param({"heads": 1, "head_width": 64, "width": 64}, {"lanes": 32, "norm_lanes": 32}, id="32 lanes"),
    ],
)
def test_other_sizes_equal_the_reference(sizes, design):
    block = quantized(float_attention(**sizes))
    files = files_of(block, block.quantized(tokens_for(float_attention(**sizes), 1, 21)[0]), **design)
    assert lint(files) == []
    assert all("PASS" in simulate_timed(files, fifo_depths=depth).output for depth in (None, 1))


@pytest.mark.parametrize(
    ("design", "widest_sum", "reason"),
    [
        (AttentionDesign(SHAPE), 27, None),
        (AttentionDesign(SHAPE, lanes=64), 24, "64 lanes"),
        (AttentionDesign(SHAPE, norm_lanes=3), 24, "3 channels per cycle"),
        (AttentionDesign(SHAPE), 28, "sums need 28 bits"),
        (AttentionDesign(AttentionShape(0, 192, 3, 64, "rms")), 24, "0 tokens"),
    ],
)
def test_designs_that_cannot_be_built(design, widest_sum, reason):
    found = design.why_not(widest_sum)
    assert found is None if reason is None else found is not None and reason in found


@pytest.mark.parametrize("tokens", [np.zeros((1, 0, 24), np.float32), np.full((1, 2, 24), np.nan, np.float32)])
def test_calibration_data_must_be_numbers(tokens):
    with pytest.raises(UnsupportedError, match=r"attention: .* calibration numbers"):
        quantize_attention(float_attention(), tokens, most_tokens=9)
