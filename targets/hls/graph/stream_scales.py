"""Blocks that pass a residual stream on agree on what one of its steps stands for, so that memory chains them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.targets.hls.attention.float_block import FloatAttention
from moec.targets.hls.moe.float_block import FloatBlock
from moec.targets.hls.normalization import stream_scale_for

Array = np.ndarray[Any, Any]


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


def needed_scale(numbers: FloatBlock | FloatAttention, tokens: Array) -> float:
    """What a step of the residual stream of one block stands for at least, by its tokens and what it makes of them."""
    seen = numbers.run(tokens)
    factor = numbers.routing.scale if isinstance(numbers, FloatBlock) else 1.0
    return stream_scale_for(tokens, seen.output, seen.results * factor)
