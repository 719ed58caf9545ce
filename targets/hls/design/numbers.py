"""Bits, beats and depths that all kinds of layers share in hardware."""

from __future__ import annotations

import dataclasses
from typing import Literal

Norm = Literal["none", "layer", "rms"]
BEAT_BYTES = 64
"""The bytes of one transfer on an AXI bus of 512 bits."""
PARAMETER_BYTES = 8
"""The bytes of an output channel's bias (32 bits), multiplier (16 bits) and padding."""
MOST_ACCUMULATOR_BITS = 27
"""One multiplier of a DSP48E2 takes 27 x 18 bits; a wider sum takes two to be scaled."""
MOST_SUM_BITS = 32
"""Bits of the bias that a sum begins with."""
MOST_WORD_BITS = 4096
"""The widest word of a channel: Vitis HLS aggregates no wider struct (its message 214-256)."""
MOST_STAGES = 60
"""The most stages of a pipeline, from its reads to its last write, that channels are deep enough for. The longest path
is a divider of 34 bits, one stage per bit, with some multiplications before and after it."""
USUAL_STAGES = 20
"""The assumed stages of a pipeline when cycles are counted; only synthesis knows the real number."""
FRACTION_BITS = 6
"""Fraction bits of totals of groups, so that rounding each group adds little to the rounding of the result."""
INPUT_BITS, ROUTER_WEIGHT_BITS, MULTIPLIER_BITS, GATE_BITS, RESULT_BITS = 8, 16, 16, 17, 16


def bits_for(count: int) -> int:
    """Bits that tell ``count`` things apart: the logarithm to base 2, rounded up."""
    return (count - 1).bit_length() if count > 1 else 0


def accumulator_bits(terms: int, weight_bits: int) -> int:
    """The bits of a sum of ``terms`` products of int8 and a weight, including one for the sign, and one for a bias as
    large as the sum."""
    return (INPUT_BITS - 1) + (weight_bits - 1) + bits_for(terms) + 2


def depth_beside(iterations_per_word: int, iterations_behind: int = 0) -> int:
    """The depth of a channel whose reader takes each word together with a word of another channel that the same loop
    writes ``iterations_behind`` iterations later, and in a later stage. A stalling pipeline (``style=stp``) moves as a
    whole, so until that other word has left its last stage, this channel must have room for all that its first stages
    write.
    """
    return (MOST_STAGES + iterations_behind) // iterations_per_word + 2


def multiplier_beats(rows: int, places: int) -> int:
    """Beats of the multipliers of ``rows`` at each of ``places``. A beat holds one place, a part of it, or several."""
    per_beat = BEAT_BYTES * 8 // MULTIPLIER_BITS
    return -(-rows // per_beat) * -(-places // max(1, per_beat // rows))


def multiplier_banks(rows: int) -> int:
    """Memories that hold the multipliers of ``rows``."""
    return -(-rows * MULTIPLIER_BITS // (BEAT_BYTES * 8))


def stripe(beats: int, masters: int, banks: int) -> int:
    """Beats of the first of ``masters``, which share ``beats`` that go to ``banks`` memories in turn. Each memory has
    one master."""
    return beats // min(masters, banks)


def padded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


@dataclasses.dataclass(frozen=True)
class Fifos:
    """Depths of the channels between processes, in words, that keep processes busy. Channels that need more because of
    pipelines have their depths in the designs."""

    tokens: int = 32
    logits: int = 2
    routes: int = 16
    jobs: int = 4
    items: int = 8
    weights: int = 128
    """Two bursts of 4 KiB; whole tiles have double buffers elsewhere."""
    results: int = 4
    measured: int = 2
    rows: int = 32
    """Chunks of keys, values and queries, and of weighted values."""
    scores: int = 4
    beats: int = 2
    """Channels from and to memory, whose masters buffer bursts themselves."""
