"""The comparison of MoE blocks with the graph on calibration data: see :mod:`moec.targets.hls.graph.agreement`."""

from __future__ import annotations

from typing import Any

import numpy as np

from moec.targets.hls.graph.agreement import BOUND, MOST_TOKENS, Agreement, Compared, agreement, roundings
from moec.targets.hls.moe.blocks import GraphBlock

Array = np.ndarray[Any, Any]

_NEAR_TIE = 1e-5
"""Logits that differ by less, as a part of the largest, may order experts either way. Rounding in their type comes on
top."""
_PER_EXPERT = 2
"""Tokens of each expert that are compared, as far as the data has them."""
_MOST_NAMES = 4


def experts_agreement(block: GraphBlock, tokens: Array, output: Array) -> Agreement:
    """Compare the block on the graph's ``tokens`` with its ``output``, both [..., d]. Raises UnsupportedError, naming
    the node, where the block computes something else."""
    inputs, expected, numbers = block.as_tokens(tokens), block.as_tokens(output), block.numbers
    rows = _rows(numbers.chosen(inputs), numbers.count)
    inputs, expected = inputs[rows], expected[rows]
    rounding = max(roundings(output.dtype), roundings(block.computed_in))
    undecided = numbers.undecided(inputs, _NEAR_TIE + rounding, rounding, BOUND / 2 + rounding)
    added = expected if numbers.norm is None else expected - inputs
    unseen = _unseen(numbers.chosen(inputs)[~undecided], numbers.count, int(undecided.sum()))
    compared = Compared(numbers.run(inputs).output, expected, added, undecided, tuple(unseen))
    return agreement(block.name, compared, output.dtype, block.computed_in)


def _rows(chosen: Array, experts: int) -> Array:
    """Indices of the tokens to compare: some spread evenly over all, and the first ones of each expert."""
    evenly = np.linspace(0, max(0, len(chosen) - 1), min(len(chosen), MOST_TOKENS)).astype(np.int64)
    firsts = [np.flatnonzero((chosen == expert).any(axis=1))[:_PER_EXPERT] for expert in range(experts)]
    return np.unique(np.concatenate([evenly, *firsts]))


def _unseen(chosen: Array, experts: int, undecided: int) -> list[str]:
    """The parts of the block that tokens with these chosen experts [T, k] do not exercise, in words."""
    missing = [str(expert) for expert in range(experts) if not (chosen == expert).any()]
    more = f" and {len(missing) - _MOST_NAMES} more" if missing[_MOST_NAMES:] else ""
    remarks = [f"experts {', '.join(missing[:_MOST_NAMES])}{more}, which no token chose"] if missing else []
    return [
        *remarks,
        *([f"{undecided} tokens, whose choice of experts is a near tie or rounding"] if undecided else []),
    ]
