"""The integer reference: what the generated hardware computes, bit for bit, in numpy.

Every step says in integers what a process of ``library/`` does. Sums of products are taken in float64, which is exact
below 2^53.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from moec.targets.hls.moe.design import FRACTION_BITS
from moec.targets.hls.moe.projection import Multipliers, QuantizedProjection, saturated, shifted
from moec.targets.hls.moe.quantize import GATE_ONE, QuantizedBlock, power_table, sigmoid_table

Array = np.ndarray[Any, Any]

MOST_EXPONENT = 32767
"""Places in the table of powers, 1024 to a halving, that weights of a softmax go down."""


@dataclasses.dataclass(frozen=True)
class IntegerResults:
    """On T tokens, P pairs: ``inputs`` int8 [T, d], normalised where there is a norm; ``logits`` [T, E], ``gates`` and
    ``chosen`` [T, k], ``loads`` [E]; by expert and then by token ``pre_activations`` [P, f or 2 f], ``hidden`` [P, f],
    ``results`` [P, d]; ``output`` int16 [T, d]."""

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
    """Tokens [T, d] through the block: int8, or int16 where they are normalised and added to the result."""
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
    """The tokens of an expert, and their gates [P, 1] or the gate of all."""
    if expert >= block.shape.experts:
        return np.arange(len(chosen)), np.array(block.shared_gate)
    rows, slots = np.nonzero(chosen == expert)
    return rows, gates[rows, slots, None]


def product(rows: Array, matrix: Array) -> Array:
    """``rows @ matrix.T`` of integers."""
    return (rows.astype(np.float64) @ matrix.astype(np.float64).T).astype(np.int64)


def projected(rows: Array, projection: QuantizedProjection, expert: int, bits: int) -> Array:
    """Rows [P, in] of an expert → results [P, out]. With groups, the sum of each is scaled by itself."""
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
    """The experts [T, k] with the largest logits, from large to small, ties to the lower id."""
    choice = logits
    if block.choice_bias is not None or block.shape.group_sum:
        choice = sigmoids(block, logits) + (0 if block.choice_bias is None else block.choice_bias)
    if block.shape.groups > 1:
        choice = _in_best_groups(block, choice)
    return np.argsort(-choice, axis=1, kind="stable")[:, : block.shape.slots]


def _in_best_groups(block: QuantizedBlock, choice: Array) -> Array:
    """With the choices of all other groups below any other."""
    shape = block.shape
    grouped = np.sort(choice.reshape(len(choice), shape.groups, -1), axis=2)
    value = grouped[:, :, -2:].sum(axis=2) if shape.group_sum else grouped[:, :, -1]
    kept = np.zeros(value.shape, bool)
    np.put_along_axis(kept, np.argsort(-value, axis=1, kind="stable")[:, : shape.groups_kept], True, axis=1)
    return np.where(kept.repeat(grouped.shape[2], axis=1), choice, np.iinfo(np.int64).min // 2)


def weigh(block: QuantizedBlock, logits: Array, chosen: Array) -> Array:
    """The gates [T, k], 2^16 for 1, rounded down."""
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
    """What a softmax weighs logits with that are ``below`` the largest: 2^17 for 1."""
    return power_of_half(np.minimum((below * score.values[0]) >> score.shift, MOST_EXPONENT))


def power_of_half(exponents: Array) -> Array:
    """2^-x for places of the table from 0 to :data:`MOST_EXPONENT`: 2^17 for 1."""
    return power_table()[exponents & 1023] >> (exponents >> 10)


def sigmoids(block: QuantizedBlock, logits: Array) -> Array:
    """2^17 for 1."""
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
