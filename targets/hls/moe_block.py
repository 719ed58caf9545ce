"""Projects of the MoE blocks of a graph."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.common.errors import MoecError, UnsupportedError
from moec.targets.base import Project
from moec.targets.hls.block import BlockKind, block_project
from moec.targets.hls.hardware.parts import FpgaPart
from moec.targets.hls.model.design import ModelDesign
from moec.targets.hls.moe import quality, reference
from moec.targets.hls.moe.agreement import experts_agreement
from moec.targets.hls.moe.blocks import GraphBlock, find_blocks
from moec.targets.hls.moe.exploration import Constraints, Exploration, explore
from moec.targets.hls.moe.loads import scaled_loads
from moec.targets.hls.moe.quantize import QuantizedBlock, quantize
from moec.targets.hls.options import HlsOptions

Array = np.ndarray[Any, Any]

_MOST_VECTORS = 256
"""The most tokens of a testbench, for which C simulation takes seconds."""


def _find(model: ir.Model, part: FpgaPart, options: HlsOptions) -> tuple[list[GraphBlock], list[str]]:
    """All MoE blocks; none may stay outside. Raises UnsupportedError for a model without any, and, naming the node, for
    a block that cannot be cut out."""
    blocks = find_blocks(model)
    if not blocks:
        raise UnsupportedError("has no MoE block; expected at least one for --target hls")
    return blocks, []


def _quantize(block: GraphBlock, tokens: Array, stream_scale: float | None, options: HlsOptions) -> QuantizedBlock:
    """The block in integers, calibrated with tokens [N, d]. Raises MoecError where neither the graph nor the user
    limits the number of tokens."""
    return quantize(
        block.numbers,
        tokens,
        most_tokens=_most_tokens(block, options),
        weight_bits=options.weight_bits,
        stream_scale=stream_scale,
    )


def _project(
    block: GraphBlock,
    integers: QuantizedBlock,
    name: str,
    tokens: Array,
    common: Mapping[str, Any],
    part: FpgaPart,
    constraints: Constraints,
    earlier: Sequence[Project],
) -> Project:
    """The project of a block for tokens [N, d]."""
    steps = integers.quantized(tokens)
    exploration = _explored(block.name, integers, steps, part, constraints)
    estimate = exploration.chosen.estimate
    report = {
        "weights": {block.name: f"int{integers.shape.weight_bits}"},
        "exploration": exploration.as_dict(),
        "quality": dataclasses.asdict(quality.compare(block.numbers, integers, tokens)),
        "channel_width": estimate.design.width,
        **common,
    }
    vectors = steps[: min(integers.shape.tokens, _MOST_VECTORS)]
    words = {"routing": _words(block.numbers.routing), "experts": _words(block.numbers.experts)}
    return block_project(name, block.name, integers, ModelDesign(estimate.design), estimate, vectors, report, **words)


def _explored(
    name: str, quantized: QuantizedBlock, steps: Array, part: FpgaPart, constraints: Constraints
) -> Exploration:
    """Explore designs for the distribution of tokens over experts on the calibration data, ``steps`` [N, d]."""
    shape = dataclasses.replace(
        quantized.shape,
        up_sum_bits=quantized.up.sum_bits,
        down_sum_bits=quantized.down.sum_bits,
        up_total_bits=quantized.up.total_bits,
        down_total_bits=quantized.down.total_bits,
    )
    counted = reference.run(quantized, steps).loads[: shape.experts].tolist()
    try:
        return explore(shape, part, constraints, scaled_loads(shape, counted, len(steps)))
    except UnsupportedError as error:
        raise UnsupportedError(f"{name}: {error}") from error


def _most_tokens(block: GraphBlock, options: HlsOptions) -> int:
    sizes = list(block.tokens.shape or ())[:-1]
    fixed = all(isinstance(size, int) for size in sizes)
    if options.max_tokens is None and not (sizes and fixed):
        shape = ", ".join(map(str, block.tokens.shape or ("?",)))
        raise MoecError(
            f"{block.name}: takes [{shape}] tokens, a number that the graph does not limit; set it with --max-tokens"
        )
    return options.max_tokens or math.prod(int(size) for size in sizes if isinstance(size, int))


def _words(spec: Any) -> str:
    """The fields of a spec that differ from their defaults, in words."""
    parts: Sequence[str] = [
        f"{field.name.replace('_', ' ')} {getattr(spec, field.name)}"
        for field in dataclasses.fields(spec)
        if getattr(spec, field.name) != field.default
    ]
    return ", ".join(parts) or "the default"


MOE = BlockKind("moe", _find, experts_agreement, _quantize, _project)
