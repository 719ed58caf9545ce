"""A common scale for the blocks of a residual stream, so that each reads from memory what the one before wrote."""

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
    """The scale of each block's stream: the largest one needed by any block connected with it."""
    scales: dict[ir.Value, float] = {}
    for _ in parts:  # as often as the longest chain has blocks
        for part in parts:
            largest = max(part.scale, scales.get(part.tokens, 0.0), scales.get(part.output, 0.0))
            scales[part.tokens] = scales[part.output] = largest
    return [scales[part.tokens] for part in parts]
