"""Blocks that pass a residual stream on agree on what one of its steps stands for, so that memory chains them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import onnx_ir as ir


@dataclasses.dataclass(frozen=True)
class StreamPart:
    """A block between two values of a graph; ``scale``: the smallest step with which its numbers fit into int16."""

    tokens: ir.Value
    output: ir.Value
    scale: float


def shared_scales(parts: Sequence[StreamPart]) -> list[float]:
    """The step of each block's stream: the largest that any block needs which is connected with it."""
    scales: dict[ir.Value, float] = {}
    for _ in parts:  # as often as the longest chain has blocks
        for part in parts:
            largest = max(part.scale, scales.get(part.tokens, 0.0), scales.get(part.output, 0.0))
            scales[part.tokens] = scales[part.output] = largest
    return [scales[part.tokens] for part in parts]
