"""The LUTs of the arithmetic of a design, unit by unit, as yosys counts them.

Every formula is fitted to what ``synth_xilinx -family xcup`` of yosys 0.70 makes of a unit in Verilog; ``python
tools/fpga_counts.py`` writes the Verilog, counts again and compares. Each agrees within 10% and 8 LUTs, and DSPs
exactly. Yosys leaves the sum of packed products in LUTs; a vendor's tool can chain DSPs there, so arrays may come out
smaller.
"""

from __future__ import annotations

import math

PACKED_PRODUCTS = 4
"""Products that are summed in one word before it is split."""
_MULTIPLIER_BITS = (27, 18)
"""Of a DSP48E2, signed (UG579)."""


def multiplier_dsps(left_bits: int, right_bits: int) -> int:
    """DSPs of one product of two signed numbers: tiles of 26 x 17 bits beside the sign, laid either way."""
    wide, narrow = (bits - 1 for bits in _MULTIPLIER_BITS)
    left, right = left_bits - 1, right_bits - 1
    return min(
        math.ceil(left / wide) * math.ceil(right / narrow),
        math.ceil(left / narrow) * math.ceil(right / wide),
    )


def dot_pair_luts(lanes: int, sum_bits: int) -> int:
    """Two rows of weights times ``lanes`` inputs, added to two sums: weights are packed to words, four products are
    summed and taken apart."""
    return lanes // PACKED_PRODUCTS * (432 + 7 * sum_bits) // 3


def requantize_luts(wide: int, bits: int) -> int:
    """A sum of ``wide`` bits times a 16-bit multiplier, rounded and saturated to ``bits``. What rounds is part of the
    DSP; products of several DSPs are added."""
    return saturate_luts(bits) + (0 if multiplier_dsps(wide, 17) == 1 else wide)


def saturate_luts(bits: int) -> int:
    return 6 + 5 * bits // 4


def router_step_luts(lanes: int, logit_bits: int) -> int:
    """The sum of ``lanes`` products of int8 and int16 and a logit, of one expert."""
    return logit_bits + 40 * (lanes - 1)


def chain_luts(slots: int, choice_bits: int, logit_bits: int) -> int:
    """A sorted chain that takes one candidate per cycle: comparisons, and what moves on in it."""
    return slots * math.ceil(2 * choice_bits / 3) + (slots - 1) * (choice_bits + logit_bits + 8)


def pick_luts(experts: int, bits: int) -> int:
    """A number of ``bits``, of one of the experts in turn."""
    return bits * max(1, experts // 2 - 1 + experts // 32)


def list_luts(slots: int) -> int:
    """Of one expert: whether a token is in its list, and with which gate."""
    return 18 * slots - 12


def combine_luts(combined_bits: int) -> int:
    """A sum of results times gates, and the result of 16 bits that it becomes."""
    return combined_bits + 16
