"""LUTs of the arithmetic units of a design, as yosys counts them.

Every formula is fitted to counts of ``synth_xilinx -family xcup`` of yosys 0.70 for the unit in Verilog; ``python
tools/fpga_counts.py`` writes the Verilog, counts again and compares. LUTs agree within 10% and 8 LUTs, DSPs exactly.
Yosys sums packed products in LUTs; a vendor's tool can chain DSPs instead, so arrays may come out smaller.
"""

from __future__ import annotations

import math

PACKED_PRODUCTS = 4
"""Packed products that are summed in one word before the word is split."""
_MULTIPLIER_BITS = (27, 18)
"""The signed operands of a DSP48E2 (UG579)."""


def multiplier_dsps(left_bits: int, right_bits: int) -> int:
    """DSPs of one product of two signed numbers: tiles of 26 x 17 bits without signs, in the better orientation."""
    wide, narrow = (bits - 1 for bits in _MULTIPLIER_BITS)
    left, right = left_bits - 1, right_bits - 1
    return min(
        math.ceil(left / wide) * math.ceil(right / narrow),
        math.ceil(left / narrow) * math.ceil(right / wide),
    )


def dot_pair_luts(lanes: int, sum_bits: int) -> int:
    """LUTs that multiply two rows of weights by ``lanes`` inputs and add to two sums: weights are packed in pairs, and
    four packed products are summed before they are split."""
    return lanes // PACKED_PRODUCTS * (432 + 7 * sum_bits) // 3


def requantize_luts(wide: int, bits: int) -> int:
    """LUTs that scale a sum of ``wide`` bits by a 16-bit multiplier and saturate it to ``bits``. Rounding is part of
    the DSP; partial products of several DSPs are added in LUTs."""
    return saturate_luts(bits) + (0 if multiplier_dsps(wide, 17) == 1 else wide)


def saturate_luts(bits: int) -> int:
    return 6 + 5 * bits // 4


def router_step_luts(lanes: int, logit_bits: int) -> int:
    """LUTs that add ``lanes`` products of int8 and int16 to the logit of one expert."""
    return logit_bits + 40 * (lanes - 1)


def chain_luts(slots: int, choice_bits: int, logit_bits: int) -> int:
    """LUTs of a sorted chain of ``slots`` that takes one candidate per cycle: comparators, and shifting entries on."""
    return slots * math.ceil(2 * choice_bits / 3) + (slots - 1) * (choice_bits + logit_bits + 8)


def pick_luts(experts: int, bits: int) -> int:
    """LUTs of a multiplexer that picks a number of ``bits`` from one expert after the other."""
    return bits * max(1, experts // 2 - 1 + experts // 32)


def list_luts(slots: int) -> int:
    """LUTs that decide for one expert whether a token goes into its list, and with which gate."""
    return 18 * slots - 12


def combine_luts(combined_bits: int) -> int:
    """LUTs that sum results times gates, and round the sum to a result of 16 bits."""
    return combined_bits + 16
