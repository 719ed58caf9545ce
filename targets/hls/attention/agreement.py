"""The comparison of attention blocks with the graph on calibration data: see
:mod:`moec.targets.hls.graph.agreement`."""

from __future__ import annotations

from typing import Any

import numpy as np

from moec.targets.hls.attention.graph import GraphAttention
from moec.targets.hls.graph.agreement import Agreement, Compared, agreement, sequences_compared

Array = np.ndarray[Any, Any]


def attention_agreement(block: GraphAttention, tokens: Array, output: Array) -> Agreement:
    """Compare the block on the graph's ``tokens`` with its ``output``, both [B, T, d]. Raises UnsupportedError, naming
    the node, where the block computes something else."""
    count = sequences_compared(tokens.shape[1])
    inputs, expected = block.as_tokens(tokens[:count]), block.as_tokens(output[:count])
    results = block.numbers.run(inputs).output
    undecided = np.zeros(inputs.shape[:2], bool)
    compared = Compared(results, expected, expected - inputs, undecided, tuple(_unseen(block, tokens.shape[1])))
    return agreement(block.name, compared, output.dtype)


def _unseen(block: GraphAttention, tokens: int) -> list[str]:
    """The parts of the block that sequences of so many tokens do not exercise, in words."""
    count = None if block.tokens.shape is None else block.tokens.shape[1]
    turns = block.numbers.turns
    remarks = [] if isinstance(count, int) else [f"sequences of other lengths than {tokens}"]
    if turns is not None and len(turns.cosines) > tokens:
        remarks.append(f"positions from {tokens} on")
    return [*remarks, *(["tokens behind those of earlier calls"] if block.past else [])]
