"""The multipliers and the logic of a design.

DSPs are counted by the operands of every product: a DSP48E2 multiplies 27 x 18 bits, signed (UG579), and two products
of int8 with a common factor share one (WP486). LUTs and flip-flops are a rough model, good for comparing designs and
for telling those that cannot fit; half of it or twice as much would be no surprise.
"""

from __future__ import annotations

import math

from moec.targets.hls.hardware.memories import OUTSTANDING, scores_all
from moec.targets.hls.moe.design import (
    GATE_BITS,
    INPUT_BITS,
    MULTIPLIER_BITS,
    RESULT_BITS,
    ROUTER_WEIGHT_BITS,
    Design,
    bits_for,
)
from moec.targets.hls.normalization import FRACTION_BITS

PRODUCTS_PER_DSP = 2
_MULTIPLIER_OPERANDS = (26, 17)
"""The bits of both operands of a DSP48E2, without the sign."""
_TERM_BITS, _RECIPROCAL_BITS = GATE_BITS + 1, 34
PACKED_PRODUCTS = 4
"""Products that are summed in one word before it is split."""
LOWER_FIELD_BITS = 18

ROUNDING_LUTS = 60
"""The LUTs that add a half, shift and saturate."""
_COMPARISON_LUTS = 40
"""Per expert and slot: keeping the best in order, and finding the expert's token list."""
CONTROL_LUTS, MASTER_LUTS = 3000, 1100
_FLIP_FLOPS_PER_LUT = 1.3


def multiplier_dsps(left_bits: int, right_bits: int) -> int:
    """DSPs of one product of two signed numbers: tiles of 26 x 17 bits beside the sign, laid either way."""
    wide, narrow = _MULTIPLIER_OPERANDS
    left, right = left_bits - 1, right_bits - 1
    return min(
        math.ceil(left / wide) * math.ceil(right / narrow),
        math.ceil(left / narrow) * math.ceil(right / wide),
    )


def dsps_of(design: Design) -> dict[str, int]:
    """By process; those that multiply nothing are missing."""
    shape, lanes = design.shape, design.lanes_out
    array = design.lanes_in * lanes // PRODUCTS_PER_DSP
    requantize_up = multiplier_dsps(design.sum_bits_up, MULTIPLIER_BITS + 1)
    requantize_down = multiplier_dsps(design.sum_bits_down, MULTIPLIER_BITS + 1)
    up = design.projections * (array + lanes * requantize_up)
    if shape.gated:
        # activated gate (16 bits) times up (11 with its offset), and the scaling of this product of 27 bits to int8
        up += lanes * (multiplier_dsps(16, 11) + multiplier_dsps(27, MULTIPLIER_BITS + 1))
    return {
        **({} if shape.norm == "none" else norm_dsps(shape.width, design.router_lanes)),
        "router": shape.experts * design.router_lanes * multiplier_dsps(ROUTER_WEIGHT_BITS, INPUT_BITS),
        "select": _select_dsps(design),
        "product_up": up,
        "product_down": array + lanes * requantize_down,
        "combine": lanes * multiplier_dsps(RESULT_BITS, GATE_BITS + 1),
    }


def norm_dsps(width: int, lanes: int) -> dict[str, int]:
    """Squares, and the variance once per token; per channel its distance from the mean, scaled twice."""
    sums, factor = RESULT_BITS + bits_for(width), bits_for(width) + 2
    variance = multiplier_dsps(RESULT_BITS + sums, factor) + multiplier_dsps(sums, sums)
    normal = FRACTION_BITS + (bits_for(width) + 1) // 2 + 2
    channel = (
        multiplier_dsps(RESULT_BITS, factor)
        + multiplier_dsps(sums + 1, MULTIPLIER_BITS + 1)
        + multiplier_dsps(normal, MULTIPLIER_BITS)
    )
    squares = lanes * multiplier_dsps(RESULT_BITS, RESULT_BITS)
    return {"measure_tokens": squares + variance, "normalize_tokens": lanes * channel}


def _select_dsps(design: Design) -> int:
    """Every score scales a logit for its table; gates are scores times the reciprocal of their sum."""
    shape = design.shape
    scores = shape.slots + (1 if scores_all(design) else 0)
    # The largest logit is nothing below itself.
    scaled = scores if shape.scoring == "sigmoid" else scores - 1
    divided = shape.slots if shape.normalized or shape.scoring != "sigmoid" else 0
    return scaled * multiplier_dsps(design.logit_bits + 2, MULTIPLIER_BITS + 1) + divided * multiplier_dsps(
        _TERM_BITS + 1, _RECIPROCAL_BITS + 1
    )


def logic_luts(design: Design) -> int:
    """All but memories, roughly: adders behind the multipliers, rounding, comparisons, division, control, masters."""
    shape, lanes = design.shape, design.lanes_out
    groups = design.lanes_in // PACKED_PRODUCTS
    adders = design.projections * lanes * groups * (LOWER_FIELD_BITS + design.sum_bits_up)
    adders += lanes * groups * (LOWER_FIELD_BITS + design.sum_bits_down)
    if shape.group:
        adders += lanes * (design.projections * design.total_bits_up + design.total_bits_down)
    rounding = (design.projections + (1 if shape.gated else 0) + 1) * lanes * ROUNDING_LUTS
    router = shape.experts * design.logit_bits * (1 + design.router_lanes // PACKED_PRODUCTS)
    routing = shape.experts * shape.slots * _COMPARISON_LUTS + _RECIPROCAL_BITS**2
    combining = lanes * design.combined_bits
    if shape.group:  # results lose their fraction beside the sums of groups
        rounding += (design.projections + 1) * lanes * ROUNDING_LUTS
    return adders + rounding + router + routing + combining + CONTROL_LUTS + len(OUTSTANDING) * MASTER_LUTS


def flip_flops(luts: int) -> int:
    """Roughly: pipelined loops hold about as many bits as they compute, and some more on their way through DSPs."""
    return round(luts * _FLIP_FLOPS_PER_LUT)
