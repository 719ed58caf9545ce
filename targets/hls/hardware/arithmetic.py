"""DSPs, LUTs and flip-flops of a design.

DSPs are counted by the operands of every product (``logic.py``); two products of int8 with a common factor share one
(WP486). LUTs of the arithmetic follow yosys' counts; those of control and masters, and flip-flops, are a rough model.
"""

from __future__ import annotations

from moec.targets.hls.design.experts import Design
from moec.targets.hls.design.normalization import FRACTION_BITS
from moec.targets.hls.design.numbers import (
    GATE_BITS,
    INPUT_BITS,
    MULTIPLIER_BITS,
    RESULT_BITS,
    ROUTER_WEIGHT_BITS,
    bits_for,
)
from moec.targets.hls.hardware.logic import (
    chain_luts,
    combine_luts,
    dot_pair_luts,
    list_luts,
    multiplier_dsps,
    pick_luts,
    requantize_luts,
    router_step_luts,
    saturate_luts,
)
from moec.targets.hls.hardware.memories import OUTSTANDING, scores_all

PRODUCTS_PER_DSP = 2
_TERM_BITS, _RECIPROCAL_BITS = GATE_BITS + 1, 34
LEAST_CHOICE_BITS = 34
"""The least bits of the numbers that the choice of experts compares."""
CONTROL_LUTS, MASTER_LUTS = 3000, 1100
_FLIP_FLOPS_PER_LUT = 1.3


def dsps_of(design: Design) -> dict[str, int]:
    """DSPs by process, without processes that multiply nothing."""
    shape, lanes = design.shape, design.lanes_out
    array = design.lanes_in * lanes // PRODUCTS_PER_DSP
    requantize_up = multiplier_dsps(design.sum_bits_up, MULTIPLIER_BITS + 1)
    requantize_down = multiplier_dsps(design.sum_bits_down, MULTIPLIER_BITS + 1)
    up = design.projections * (array + lanes * requantize_up)
    if shape.gated:
        # The activated gate (16 bits) times up (11 bits with its offset), and the scaling of this 27-bit product.
        up += lanes * (multiplier_dsps(16, 11) + multiplier_dsps(27, MULTIPLIER_BITS + 1))
    return {
        **({} if shape.norm == "none" else norm_dsps(shape.width, design.router_lanes)),
        "router": design.router_rows * design.router_lanes * multiplier_dsps(ROUTER_WEIGHT_BITS, INPUT_BITS),
        "select": _select_dsps(design),
        "product_up": up,
        "product_down": array + lanes * requantize_down,
        "combine": lanes * multiplier_dsps(RESULT_BITS, GATE_BITS + 1),
    }


def norm_dsps(width: int, lanes: int) -> dict[str, int]:
    """DSPs of a normalisation of ``lanes`` channels per cycle: squares, the variance of each token, and per channel
    the distance from the mean and two scalings."""
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
    """DSPs of the choice: each score scales a logit to a table index, and each gate is a score times a reciprocal."""
    shape = design.shape
    scores = shape.slots + (1 if scores_all(design) else 0)
    # A softmax scales distances from the largest logit, whose own distance is 0.
    scaled = scores if shape.scoring == "sigmoid" else scores - 1
    divided = shape.slots if shape.normalized or shape.scoring != "sigmoid" else 0
    return scaled * multiplier_dsps(design.logit_bits + 2, MULTIPLIER_BITS + 1) + divided * multiplier_dsps(
        _TERM_BITS + 1, _RECIPROCAL_BITS + 1
    )


def logic_luts(design: Design) -> int:
    """LUTs of everything except memories: the arithmetic, the division, and, roughly, control and masters."""
    shape, lanes = design.shape, design.lanes_out
    arrays = design.projections * array_luts(lanes, design.lanes_in, design.sum_bits_up)
    arrays += array_luts(lanes, design.lanes_in, design.sum_bits_down)
    rounding = lanes * (design.projections * requantize_luts(design.sum_bits_up, INPUT_BITS))
    rounding += lanes * requantize_luts(design.sum_bits_down, RESULT_BITS)
    if shape.gated:
        rounding += lanes * saturate_luts(INPUT_BITS)
    if shape.group:  # sums of groups are added to totals, whose fraction is rounded away at the end
        rounding += lanes * design.projections * (design.total_bits_up + saturate_luts(INPUT_BITS))
        rounding += lanes * (design.total_bits_down + saturate_luts(RESULT_BITS))
    choice_bits = max(design.logit_bits, LEAST_CHOICE_BITS)
    routing = design.router_rows * router_step_luts(design.router_lanes, design.logit_bits)
    routing += shape.experts * list_luts(shape.slots)
    routing += chain_luts(shape.slots, choice_bits, design.logit_bits) + pick_luts(
        design.router_rows, design.logit_bits
    )
    combining = lanes * combine_luts(design.combined_bits)
    masters = (len(OUTSTANDING) - 2 + design.masters_up + design.masters_down) * MASTER_LUTS
    return arrays + rounding + routing + _RECIPROCAL_BITS**2 + combining + CONTROL_LUTS + masters


def array_luts(rows: int, lanes: int, sum_bits: int) -> int:
    """LUTs of an array of ``rows`` x ``lanes`` int8 products. Two rows share their DSPs."""
    return rows // PRODUCTS_PER_DSP * dot_pair_luts(lanes, sum_bits)


def flip_flops(luts: int) -> int:
    """A rough count: pipelined loops hold about as many bits as they compute, and some more on their way through
    DSPs."""
    return round(luts * _FLIP_FLOPS_PER_LUT)
