"""Attention blocks against the graph, on calibration data: see :mod:`moec.targets.hls.graph.agreement`."""

from __future__ import annotations

from typing import Any

import numpy as np

from moec.targets.hls.attention.graph import GraphAttention
from moec.targets.hls.graph.agreement import Agreement, Compared, agreement, sequences_compared

Array = np.ndarray[Any, Any]


def attention_agreement(block: GraphAttention, tokens: Array, output: Array) -> Agreement:
    """``tokens`` and ``output`` [B, T, d]: of the graph. Raises UnsupportedError, naming the node, where the block
    computes something else."""
    count = sequences_compared(tokens.shape[1])
    given, expected = block.as_tokens(tokens[:count]), block.as_tokens(output[:count])
    found = block.numbers.run(given).output
    undecided = np.zeros(given.shape[:2], bool)
    compared = Compared(found, expected, expected - given, undecided, tuple(_unseen(block, tokens.shape[1])))
    return agreement(block.name, compared, output.dtype)


def _unseen(block: GraphAttention, tokens: int) -> list[str]:
    """By sequences of so many tokens."""
    count = None if block.tokens.shape is None else block.tokens.shape[1]
    turns = block.numbers.turns
    found = [] if isinstance(count, int) else [f"sequences of other lengths than {tokens}"]
    if turns is not None and len(turns.cosines) > tokens:
        found.append(f"positions from {tokens} on")
    return [*found, *(["tokens behind those of earlier calls"] if block.past else [])]
