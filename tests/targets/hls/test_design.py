"""The sizes that follow from a layer and a design, and the designs that cannot be built."""

from __future__ import annotations

import dataclasses
import math

import pytest

from moec.targets.hls.design.experts import BlockShape, Design
from moec.targets.hls.design.numbers import accumulator_bits, bits_for

SHAPE = BlockShape(tokens=197, width=192, hidden=768, experts=16, slots=4)


@pytest.mark.parametrize(("count", "bits"), [(0, 0), (1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (256, 8), (257, 9)])
def test_bits_that_tell_things_apart(count, bits):
    assert bits_for(count) == bits


@pytest.mark.parametrize("terms", [1, 100, 192, 768, 2048])
@pytest.mark.parametrize("weight_bits", [4, 8, 16])
def test_a_sum_and_a_bias_as_large_fit_into_an_accumulator(terms, weight_bits):
    largest = terms * 2**7 * 2 ** (weight_bits - 1)
    assert 2 * largest <= 2 ** (accumulator_bits(terms, weight_bits) - 1)


@pytest.mark.parametrize(
    ("design", "expected"),
    [
        (
            Design(SHAPE),
            {"tiles": 12, "input_chunks": 12, "hidden_out_chunks": 4, "banks_up": 4, "banks_down": 4}
            | {"weight_beats_up": 192, "weight_beats_down": 192, "parameter_beats_up": 8, "parameter_beats_down": 24}
            | {"sum_bits_up": 24, "sum_bits_down": 26, "hidden_depth": 8, "combined_bits": 35},
        ),
        (
            Design(dataclasses.replace(SHAPE, gated=True, weight_bits=4), 32, 32, 64),
            {"tiles": 12, "input_chunks": 6, "hidden_out_chunks": 2, "banks_up": 16, "banks_down": 8}
            | {"weight_beats_up": 192, "weight_beats_down": 96, "parameter_beats_up": 16}
            | {"sum_bits_up": 20, "hidden_depth": 4},
        ),
        (
            Design(dataclasses.replace(SHAPE, width=200, hidden=100, shared=2)),
            {"width": 208, "hidden": 128, "tiles": 2, "combined_bits": 36},
        ),
    ],
)
def test_derived_sizes(design, expected):
    assert {name: getattr(design, name) for name in expected} == expected
    assert design.why_not() is None


@pytest.mark.parametrize("lanes", [8, 16, 32])
def test_tiles_hold_every_weight_once(lanes):
    design = Design(SHAPE, lanes, lanes)
    beats = design.banks_down * design.hidden_out_chunks * design.input_chunks
    assert beats == design.weight_beats_down == math.prod((design.width, design.hidden_tile)) // 64


@pytest.mark.parametrize(
    ("design", "reason"),
    [
        (Design(SHAPE, 16, 32), "square"),
        (Design(SHAPE, 64, 64), "64 lanes; expected 8, 16 or 32"),
        (Design(dataclasses.replace(SHAPE, weight_bits=4), 8, 8), "32 bytes of weights per step"),
        (Design(SHAPE, hidden_tile=40), "tiles of 40 hidden units"),
        (Design(SHAPE, router_lanes=3), "3 router lanes"),
        (Design(dataclasses.replace(SHAPE, width=1 << 17)), "sums need 33 bits"),
        (Design(dataclasses.replace(SHAPE, experts=510, shared=1), router_experts=32), "511 experts"),
        (Design(dataclasses.replace(SHAPE, experts=133)), "logits of 133 experts at once"),
    ],
)
def test_designs_that_cannot_be_built(design, reason):
    assert reason in design.why_not()
