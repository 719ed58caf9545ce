"""Attention blocks: integers against floats, and generated C++ against integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moec.common.errors import UnsupportedError
from moec.simulators.hls.simulate import timed_calls
from moec.simulators.hls.simulator import SimulationError, simulate_timed
from moec.targets.hls.attention import reference as attention_reference
from moec.targets.hls.attention.float_block import FloatAttention, RotaryEmbedding
from moec.targets.hls.attention.packing import calls_of
from moec.targets.hls.attention.quantize import QuantizedAttention, quantize_attention
from moec.targets.hls.design.attention import AttentionDesign, AttentionShape
from moec.targets.hls.design.normalization import FloatNorm
from moec.targets.hls.design.numbers import MOST_STAGES
from moec.targets.hls.model.design import ModelDesign
from moec.targets.hls.model.plan import block_plan
from moec.targets.hls.model.project import model_files
from moec.targets.hls.moe.quality import signal_to_noise

from .layers import DEVICE
from .lint.linter import lint

SINKS = np.array([30, -200, 0.5, 3], np.float32)
"""The sinks of four heads; the first leaves hardly any weight to keys, the second has no weight."""
CACHED = {"joint": True, "window": 5, "sinks": SINKS}
"""The block with a cache whose design is compiled in every run."""
SHAPE = AttentionShape(tokens=197, width=192, heads=3, head_width=64, norm="layer")


def float_attention(
    heads=2, head_width=8, width=24, kind="layer", sharpness=1.5, seed=0, sharing=1, **fields
) -> FloatAttention:
    random = np.random.default_rng(seed)

    def normal(*shape, scale):
        return random.normal(0, scale, shape).astype(np.float32)

    norm = FloatNorm(kind, 1 + normal(width, scale=0.2), normal(width, scale=0.1 if kind == "layer" else 0), 1e-5)
    rows = [
        (normal(count, head_width, width, scale=one * width**-0.5), normal(count, head_width, scale=0.1))
        for one, count in ((sharpness, heads), (sharpness, heads // sharing), (1.0, heads // sharing))
    ]
    output = normal(width, heads * head_width, scale=(heads * head_width) ** -0.5)
    return FloatAttention(
        "attention",
        norm,
        head_width**-0.5,
        *(array for pair in rows for array in pair),
        output,
        normal(width, scale=0.1),
        **fields,
    )


def turns_for(head_width, positions=64, turned=None) -> RotaryEmbedding:
    """A rotary embedding of the first ``turned`` channels, by default of all."""
    pairs = (turned or head_width) // 2
    angles = np.arange(positions)[:, None] * 100.0 ** (-np.arange(pairs) / pairs)
    angles = np.pad(angles, ((0, 0), (0, head_width // 2 - pairs)))
    return RotaryEmbedding(np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32))


def head_norm_for(head_width, seed=0) -> FloatNorm:
    weight = 1 + np.random.default_rng(seed).normal(0, 0.2, head_width).astype(np.float32)
    return FloatNorm("rms", weight, np.zeros(head_width, np.float32), 1e-6)


def decoder(head_width=8, *, heads=4, sharing=2, turned=None, normed=False, joint=False, **fields) -> FloatAttention:
    """A causal block with grouped heads and rotary embeddings. ``normed``: rows are normalised on their own; ``joint``:
    those of all heads together."""
    widths = [head_width * count if joint else head_width for count in (heads, heads // sharing)]
    names = ("query_norm", "key_norm") if normed or joint else ()
    norms = {name: head_norm_for(width, seed) for seed, (name, width) in enumerate(zip(names, widths, strict=False))}
    turns = turns_for(head_width, turned=turned)
    fields = {"kind": "rms", "causal": True, "turns": turns, **norms, **fields}
    return float_attention(heads=heads, head_width=head_width, sharing=sharing, **fields)


def tokens_for(block, batch, count, seed=1):
    return np.random.default_rng(seed).normal(size=(batch, count, block.width)).astype(np.float32)


def quantized(block, most_tokens=21, cached=0) -> QuantizedAttention:
    return quantize_attention(block, tokens_for(block, 4, 20), most_tokens=most_tokens, cached=cached)


def files_of(block, steps, **design):
    built = ModelDesign(None, AttentionDesign(block.shape, **design))
    return model_files(built, block_plan("attention", block), steps, device=DEVICE, clock=300)


@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize(("sharpness", "decibels"), [(0.1, 34), (1.5, 30), (4, 25)])
def test_integers_are_close_to_floats(kind, sharpness, decibels):
    """Heads range from attending to all tokens equally to attending to few, where a step of a score matters more."""
    block = float_attention(heads=3, head_width=16, width=48, kind=kind, sharpness=sharpness)
    tokens = tokens_for(block, 4, 50)
    integers, floats = quantize_attention(block, tokens, most_tokens=50), block.run(tokens)
    for sequence, expected in zip(tokens, floats.output, strict=True):
        actual = attention_reference.run(integers, integers.quantized(sequence)).output * integers.output_scale
        assert signal_to_noise(expected, actual) > decibels


def test_the_best_key_has_the_largest_weight_and_equal_keys_equal_ones():
    block = quantized(float_attention())
    results = attention_reference.run(block, block.quantized(tokens_for(float_attention(), 1, 7)[0]))
    assert (results.weights.max(axis=2) == 255).all()
    alike = attention_reference.run(block, np.tile(np.arange(24) * 100, (7, 1)))
    assert (alike.weights == 255).all()


@pytest.mark.parametrize(
    "fields",
    [
        *({}, {"turned": 8}, {"normed": True}, {"sharing": 1}, {"sharing": 4, "normed": True}, {"joint": True}),
        *({"window": 7}, {"sinks": SINKS}, {"sinks": SINKS, "turns": None, "window": 1}),
        {"sinks": np.full(4, 50, np.float32)},
        *({"turns": None, "head_width": 7, **odd} for odd in ({"sinks": SINKS}, {"normed": True}, {"joint": True})),
    ],
)
def test_integers_of_a_decoder_are_close_to_floats(fields):
    block = decoder(**{"head_width": 16, "width": 48, **fields})
    tokens = tokens_for(block, 4, 50)
    integers, floats = quantize_attention(block, tokens, most_tokens=50), block.run(tokens)
    for sequence, expected in zip(tokens, floats.output, strict=True):
        actual = attention_reference.run(integers, integers.quantized(sequence)).output * integers.output_scale
        assert signal_to_noise(expected, actual) > 30


def test_a_causal_block_does_not_look_ahead():
    block = quantized(decoder(normed=True))
    steps = block.quantized(tokens_for(decoder(), 1, 20)[0])
    whole, part = attention_reference.run(block, steps), attention_reference.run(block, steps[:7])
    assert np.array_equal(whole.output[:7], part.output)
    assert not whole.weights[:, np.triu_indices(20, 1)[0], np.triu_indices(20, 1)[1]].any()


def test_a_window_leaves_keys_behind():
    block = quantized(decoder(window=3))
    results = attention_reference.run(block, block.quantized(tokens_for(decoder(), 1, 20)[0]))
    met = np.abs(np.arange(20) - np.arange(20)[:, None] + 1) <= 1
    assert (results.weights[:, ~met] == 0).all()
    assert (results.weights.max(axis=2) == 255).all()


@pytest.mark.parametrize("calls", [[9, 1, 1, 1], [1] * 12, [5, 7]])
@pytest.mark.parametrize("fields", [{"normed": True}, {"joint": True, "window": 4, "sinks": SINKS}])
def test_calls_behind_each_other_are_one_sequence(calls, fields):
    """Calls that share only a cache give the same bits, however a sequence is cut."""
    block = quantized(decoder(**fields))
    steps = block.quantized(tokens_for(decoder(), 1, 12)[0])
    whole, parts, at = attention_reference.run(block, steps), [None], 0
    for count in calls:
        parts.append(attention_reference.run(block, steps[at : at + count], parts[-1]))
        at += count
    assert np.array_equal(np.concatenate([part.output for part in parts[1:]]), whole.output)


def test_turns_depend_on_the_distance_alone():
    """Scores of rotated equal tokens depend only on their distance, the purpose of rotary embeddings."""
    turns = turns_for(8)
    row = np.tile(np.random.default_rng(0).normal(size=8), (1, 40, 1))
    scores = turns.run(row)[0] @ turns.run(row)[0].T
    np.testing.assert_allclose(scores[10:, 10:], scores[:-10, :-10], atol=1e-5)


@pytest.mark.parametrize(
    "fields",
    [{"query_norm": head_norm_for(8)}, {"joint": True, "key_norm": head_norm_for(8)}],
    ids=["one side", "all heads and each"],
)
def test_queries_and_keys_that_are_normalised_differently_are_refused(fields):
    with pytest.raises(UnsupportedError, match="in another way; expected RMS normalisation of both"):
        quantized(decoder(**fields))


@pytest.mark.parametrize("value", [-32768, 0, 32767])
def test_extremes_of_int16_stay_in_range(value):
    block = quantized(float_attention())
    results = attention_reference.run(block, np.full((5, 24), value))
    assert results.output.dtype == np.int16
    assert np.abs(results.attended).max() <= 128


@pytest.fixture(scope="module")
def layer():
    """The block whose pipelines test_pipelines.py looks at, so that one program is compiled for both files."""
    return quantized(float_attention(), most_tokens=70)


@pytest.mark.parametrize("count", [0, 1, 7, 9])
def test_timed_simulation_equals_the_reference(count, layer):
    """With channels of depth 1, a process that waited for more than its own inputs would stop all others."""
    files = files_of(layer, layer.quantized(tokens_for(float_attention(), 1, count)[0]), lanes=8)
    declared, narrow = (simulate_timed(files, fifo_depths=depth) for depth in (None, 1))
    assert f"PASS: {count} tokens" in declared.output and f"PASS: {count} tokens" in narrow.output
    assert narrow.cycles >= declared.cycles


@pytest.mark.nightly  # test_timed_simulation_equals_the_reference has a decoder in every run
@pytest.mark.parametrize(
    ("fields", "design"),
    [
        ({"normed": True}, {}),
        ({"heads": 3, "sharing": 3, "head_width": 12, "turned": 4, "width": 40, "joint": True}, {"norm_lanes": 2}),
    ],
)
@pytest.mark.parametrize("count", [0, 1, 17])
def test_a_decoder_equals_the_reference(count, fields, design):
    """With 17 tokens, the third group of keys has only one."""
    block = decoder(**fields)
    integers = quantized(block)
    files = files_of(integers, integers.quantized(tokens_for(block, 1, count)[0]), lanes=8, **design)
    assert lint(files) == []
    for settings in ({}, {"pipeline_depth": MOST_STAGES}):
        assert f"PASS: {count} tokens" in simulate_timed(files, **settings).output


@pytest.mark.parametrize(
    ("fields", "counts"),
    [
        pytest.param({"normed": True}, [19], marks=pytest.mark.nightly),  # test_latents.py covers it with latents
        pytest.param({"sharing": 1, "turns": None, "head_width": 12}, [19], marks=pytest.mark.nightly),
        pytest.param({"head_width": 72}, [4], marks=pytest.mark.nightly),
        (CACHED, [0, 19]),
        pytest.param({"window": 8, "sinks": SINKS}, [19], marks=pytest.mark.nightly),
        *(pytest.param({"window": window}, [19], marks=pytest.mark.nightly) for window in (1, 2, 9, 10, 18, 40)),
    ],
)
def test_a_cache_holds_a_sequence_between_calls(fields, counts):
    """19 tokens come as calls of 8, 8, 1, 1 and 1. The testbench runs all calls twice; reports have the first time."""
    block = decoder(**fields)
    integers = quantized(block, most_tokens=8, cached=19)
    for count in counts:
        files = files_of(integers, integers.quantized(tokens_for(block, 1, 24)[0][:count]), lanes=8)
        assert lint(files) == []
        calls = [{"tokens": of_call} for of_call in calls_of(integers.shape, count)]
        for settings in ({}, {"pipeline_depth": MOST_STAGES}):
            timed = simulate_timed(files, **settings)
            assert f"PASS: {count} tokens" in timed.output
            simulated = [call["simulated"] for call in timed_calls(calls, timed, 0)]
            assert simulated == [timed.cycles, *timed.later_cycles][: len(calls)]
            assert len(timed.later_cycles) == 2 * len(calls) - 1


def test_more_tokens_than_a_cache_has_room_for_are_an_error():
    block = decoder(**CACHED)
    integers = quantized(block, most_tokens=8, cached=19)
    files = files_of(integers, integers.quantized(tokens_for(block, 1, 19)[0]), lanes=8)
    host: dict[str, Any] = {"__name__": "host"}
    exec(files["host.py"].decode(), host)
    sequence = host["Sequence"]()
    for count, past in ((8, 0), (8, 8), (3, 16)):
        assert sequence.start_of(count) == past
        sequence.add(count)
    with pytest.raises(ValueError, match="1 tokens behind 19; expected up to 8, 19 in all"):
        sequence.start_of(1)
    records = np.frombuffer(files["data/layers.bin"], "<i4").reshape(-1, 32).copy()
    assert records[2, 1] == 1
    records[2, 1] = 4
    with pytest.raises(SimulationError, match="4 tokens behind 16; the cache holds up to 19"):
        simulate_timed({**files, "data/layers.bin": records.tobytes()})


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
        (AttentionDesign(AttentionShape(9, 192, 3, 64, "rms", sharing=2)), 24, "3 heads, 2 of which share keys"),
        (AttentionDesign(AttentionShape(9, 192, 3, 64, "rms", causal=True, cached=8)), 24, "a cache of 8 positions"),
        (AttentionDesign(AttentionShape(9, 192, 3, 64, "rms", windowed=True)), 24, "windows of tokens that see"),
        (AttentionDesign(AttentionShape(0, 192, 3, 64, "rms")), 24, "0 tokens"),
    ],
)
def test_designs_that_cannot_be_built(design, widest_sum, reason):
    actual = design.why_not(widest_sum)
    assert actual is None if reason is None else actual is not None and reason in actual


@pytest.mark.parametrize("tokens", [np.zeros((1, 0, 24), np.float32), np.full((1, 2, 24), np.nan, np.float32)])
def test_calibration_data_must_be_numbers(tokens):
    with pytest.raises(UnsupportedError, match=r"attention: calibration data has .* numbers"):
        quantize_attention(float_attention(), tokens, most_tokens=9)
