"""The integer reference of a MoE block in numpy: bit for bit the results of the generated hardware.

Every step mirrors a process of ``library/``. Sums of products are computed in float64, which is exact below 2^53.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from moec.targets.hls.design.numbers import FRACTION_BITS
from moec.targets.hls.design.projection import Multipliers, QuantizedProjection, saturated, shifted
from moec.targets.hls.moe.quantize import GATE_ONE, QuantizedBlock, power_table, sigmoid_table

Array = np.ndarray[Any, Any]

MOST_EXPONENT = 32767
"""The largest exponent of a softmax's terms, in steps of the table of powers, 1024 of which halve a term."""


@dataclasses.dataclass(frozen=True)
class IntegerResults:
    """Tensors of a block on T tokens with P pairs of token and expert.

    - Per token: ``inputs`` int8 [T, d], normalised if there is a norm; ``logits`` [T, E]; ``gates`` and ``chosen``
      [T, k]; ``output`` int16 [T, d].
    - Per pair, by expert and then by token: ``pre_activations`` [P, f or 2 f], ``hidden`` [P, f], ``results`` [P, d].
    - ``loads`` [E]: tokens of each expert, shared ones last.
    """

    inputs: Array
    logits: Array
    gates: Array
    chosen: Array
    loads: Array
    pre_activations: Array
    hidden: Array
    results: Array
    output: Array


def run(block: QuantizedBlock, tokens: Array) -> IntegerResults:
    """Run tokens [T, d] through the block: int8, or the int16 residual stream if the block has a norm."""
    shape, residual = block.shape, tokens
    if block.norm is not None:
        tokens = block.norm.run(tokens)
    logits = product(tokens, block.router) + block.router_bias
    chosen = choose(block, logits)
    gates = weigh(block, logits, chosen)
    combined = np.zeros((len(tokens), shape.width), np.int64)
    parts = []
    for expert in range(shape.all_experts):
        rows, gates_of = _rows_of(block, expert, chosen, gates)
        before = projected(tokens[rows], block.up, expert, 8)
        hidden = activate(block, before)
        result = projected(hidden, block.down, expert, 16)
        combined[rows] += result * gates_of
        parts.append((before, hidden, result))
    before, hidden, results = (np.concatenate(part) for part in zip(*parts, strict=True))
    output = saturated((combined + GATE_ONE // 2) >> 16, 16)
    if block.norm is not None:
        output = saturated(output + residual, 16)
    loads = np.append(np.bincount(chosen.reshape(-1), minlength=shape.experts), np.full(shape.shared, len(tokens)))
    return IntegerResults(tokens, logits, gates, chosen, loads, before, hidden, results, output.astype(np.int16))


def _rows_of(block: QuantizedBlock, expert: int, chosen: Array, gates: Array) -> tuple[Array, Array]:
    """The tokens of an expert, and their gates [P, 1]; of a shared expert all tokens, and its one gate."""
    if expert >= block.shape.experts:
        return np.arange(len(chosen)), np.array(block.shared_gate)
    rows, slots = np.nonzero(chosen == expert)
    return rows, gates[rows, slots, None]


def product(rows: Array, matrix: Array) -> Array:
    """``rows @ matrix.T`` in exact integers."""
    return (rows.astype(np.float64) @ matrix.astype(np.float64).T).astype(np.int64)


def projected(rows: Array, projection: QuantizedProjection, expert: int, bits: int) -> Array:
    """The product of an expert, rows [P, in] → results [P, out] of ``bits``. With groups, the sum of each group is
    scaled on its own."""
    weights, multipliers = projection.weights[expert], projection.multipliers
    if not projection.group:
        sums = product(rows, weights) + projection.biases[expert]
        return saturated(shifted(sums * multipliers.values[expert], multipliers.shift), bits)
    totals = np.tile(projection.biases[expert], (len(rows), 1))
    for place, inputs in enumerate(projection.groups):
        sums = product(rows[:, inputs], weights[:, inputs])
        totals += shifted(sums * multipliers.values[expert][:, place], multipliers.shift)
    return saturated(shifted(totals, FRACTION_BITS), bits)


def choose(block: QuantizedBlock, logits: Array) -> Array:
    """The chosen experts [T, k], from the best to the worst; of equals, the one with the lower id is better. Experts
    are ranked by their logits, or by their biased sigmoids."""
    choice = logits
    if block.choice_bias is not None or block.shape.group_sum:
        choice = sigmoids(block, logits) + (0 if block.choice_bias is None else block.choice_bias)
    if block.shape.groups > 1:
        choice = _in_best_groups(block, choice)
    return np.argsort(-choice, axis=1, kind="stable")[:, : block.shape.slots]


def _in_best_groups(block: QuantizedBlock, choice: Array) -> Array:
    """The numbers that experts are ranked by, lowered below all others for experts outside the best groups."""
    shape = block.shape
    grouped = np.sort(choice.reshape(len(choice), shape.groups, -1), axis=2)
    value = grouped[:, :, -2:].sum(axis=2) if shape.group_sum else grouped[:, :, -1]
    kept = np.zeros(value.shape, bool)
    np.put_along_axis(kept, np.argsort(-value, axis=1, kind="stable")[:, : shape.groups_kept], True, axis=1)
    return np.where(kept.repeat(grouped.shape[2], axis=1), choice, np.iinfo(np.int64).min // 2)


def weigh(block: QuantizedBlock, logits: Array, chosen: Array) -> Array:
    """The gates [T, k] of the chosen experts, rounded down, where 2^16 stands for 1."""
    if not block.shape.experts:
        return np.zeros(chosen.shape, np.int64)
    of_chosen = np.take_along_axis(logits, chosen, axis=1)
    if block.shape.scoring == "sigmoid":
        terms = sigmoids(block, of_chosen)
        sums = terms.sum(axis=1, keepdims=True) if block.shape.normalized else np.full((len(terms), 1), 1 << 17)
    else:
        largest = of_chosen[:, :1]
        terms = powers_of(block.score, largest - of_chosen)
        summed = terms if block.shape.normalized else powers_of(block.score, largest - logits)
        sums = summed.sum(axis=1, keepdims=True)
    return (terms * ((1 << 33) // sums)) >> 17


def powers_of(score: Multipliers, below: Array) -> Array:
    """The terms of a softmax for logits that are ``below`` the largest by so much, where 2^17 stands for 1."""
    return power_of_half(np.minimum((below * score.values[0]) >> score.shift, MOST_EXPONENT))


def power_of_half(exponents: Array) -> Array:
    """2^(-x / 1024) for exponents x from 0 to :data:`MOST_EXPONENT`, where 2^17 stands for 1."""
    return power_table()[exponents & 1023] >> (exponents >> 10)


def sigmoids(block: QuantizedBlock, logits: Array) -> Array:
    """The sigmoids of logits, where 2^17 stands for 1."""
    places = np.minimum((np.abs(logits) * block.score.values[0]) >> block.score.shift, 2047)
    upper = sigmoid_table()[places]
    return np.where(logits < 0, (1 << 17) - upper, upper)


def activate(block: QuantizedBlock, before: Array) -> Array:
    """Hidden units int8 [P, f] from the results of the first product, [P, f] or, gate and up by turns, [P, 2 f]."""
    if not block.shape.gated:
        return block.activation[before + 128]
    activated = block.activation[before[:, 0::2] + 128]
    up = np.clip(before[:, 1::2], -block.up_limit, block.up_limit)
    multiplier, shift = int(block.hidden_multiplier.values[0]), block.hidden_multiplier.shift
    return saturated((activated * (up + block.up_offset) * multiplier + (1 << (shift - 1))) >> shift, 8)
