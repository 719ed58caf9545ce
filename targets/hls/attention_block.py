"""Projects of the attention blocks of a graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.common.errors import InputError, UnsupportedError
from moec.targets.base import Project
from moec.targets.hls.attention import reference as attention_reference
from moec.targets.hls.attention.agreement import attention_agreement
from moec.targets.hls.attention.cycles import attention_cycles
from moec.targets.hls.attention.graph import SOME_POSITIONS, GraphAttention, find_attention
from moec.targets.hls.attention.packing import calls_of
from moec.targets.hls.attention.quantize import QuantizedAttention, quantize_attention
from moec.targets.hls.attention.quantize import shape_of as attention_shape
from moec.targets.hls.attention.resources import AttentionEstimate, estimate_attention
from moec.targets.hls.block import BlockKind, block_project
from moec.targets.hls.design.attention import AttentionDesign, AttentionShape
from moec.targets.hls.design.numbers import accumulator_bits, padded
from moec.targets.hls.hardware.costs import RESOURCE_NAMES
from moec.targets.hls.hardware.parts import FpgaPart
from moec.targets.hls.model.design import ModelDesign
from moec.targets.hls.moe.exploration import Constraints
from moec.targets.hls.moe.quality import signal_to_noise
from moec.targets.hls.options import HlsOptions

Array = np.ndarray[Any, Any]

_LANES = (32, 16, 8)


def shape_of(block: GraphAttention, options: HlsOptions) -> AttentionShape:
    """The shape of the block for one sequence. A causal block gets a cache of keys and values if the user limits the
    length of a sequence, or if the graph takes earlier keys.

    Raises UnsupportedError where neither the graph nor the user limits the number of tokens, and for a graph that takes
    earlier keys in a block that is not causal.
    """
    count = None if block.tokens.shape is None else block.tokens.shape[1]
    tokens = count if isinstance(count, int) else options.max_tokens
    if tokens is None:
        raise UnsupportedError("the graph does not limit the length of a sequence; set it with --max-tokens")
    if block.past and not block.numbers.causal:
        raise UnsupportedError("it takes keys of earlier tokens and is not causal; expected a causal mask")
    length = options.max_length or (tokens if block.past else 0)
    return attention_shape(block.numbers, min(tokens, length or tokens), length if block.numbers.causal else 0)


def expect_whole_sequences(block: GraphAttention, options: HlsOptions) -> None:
    """Check that calibration data holds sequences from their first token on. Raises InputError where it has keys or
    values of earlier tokens."""
    data = options.calibration or {}
    for name in (str(value.name) for value in block.past):
        if name in data and (count := data[name].shape[2]):
            raise InputError(
                f"calibration data for {name!r} has the keys or values of {count} earlier tokens; expected none; "
                "leave all such inputs out, and give sequences from their first token on, with masks and positions "
                "of these tokens alone"
            )


def choose_attention(
    shape: AttentionShape, part: FpgaPart, constraints: Constraints, lanes: Sequence[int] = _LANES
) -> AttentionEstimate:
    """The first design, by number of ``lanes``, that fits the part; by default the fastest. Raises UnsupportedError
    where none fits, naming the resources that are short."""
    clock, limits = constraints.clock(part), constraints.limits(part)
    reasons = []
    for count in lanes:
        # All tokens are normalised before the first product starts, so it pays to normalise a chunk per cycle, for 4
        # DSPs per lane.
        design = AttentionDesign(shape, count, count)
        sizes = (design.width, design.most_steps * design.lanes, design.hidden)
        reason = design.why_not(max(accumulator_bits(size, 8) for size in sizes))
        if reason is None:
            estimate = estimate_attention(design, part, clock, constraints.memory_share, constraints.calibration)
            needed = {name: (getattr(estimate.resources, name), getattr(limits, name)) for name in RESOURCE_NAMES}
            short = [f"{n} {RESOURCE_NAMES[name]} of {most}" for name, (n, most) in needed.items() if n > most]
            if not short:
                return estimate
            reason = f"it needs {', '.join(short)} on {part.board}"
        reasons.append(f"with {count} lanes {reason}")
    raise UnsupportedError(f"no design fits: {reasons[-1] if reasons else 'no number of lanes was allowed'}")


def last_token(estimate: AttentionEstimate, window: int = 0) -> dict[str, float]:
    """The speed of a call with one token, the last that the cache has room for. ``window``: keys that it looks back; 0
    for all."""
    past, stages = estimate.design.shape.cached - 1, estimate.calibration.stages
    cycles = attention_cycles(estimate.design, 1, estimate.ports.loaders, stages, past, window, estimate.ports.caches)
    return {"past": past, **estimate.call(cycles)}


def reported_calls(estimate: AttentionEstimate, tokens: int, window: int = 0) -> list[dict[str, int]]:
    """The estimated cycles of the testbench's calls on a sequence of so many tokens."""
    design, ports, stages = estimate.design, estimate.ports, estimate.calibration.stages
    past, calls = 0, []
    for count in filter(None, calls_of(design.shape, tokens)):
        cycles = attention_cycles(design, count, ports.loaders, stages, past, window, ports.caches)
        calls.append({"tokens": count, "past": past, "cycles": cycles.total})
        past += count
    return calls


def _find(model: ir.Model, part: FpgaPart, options: HlsOptions) -> tuple[list[GraphAttention], list[str]]:
    """The blocks that the templates can compute and that fit the part, and the reasons why others stay outside."""
    blocks, outside = find_attention(model, options.max_length or options.max_tokens or SOME_POSITIONS)
    fitting = []
    for block in blocks:
        try:
            choose_attention(shape_of(block, options), part, options.constraints)
        except UnsupportedError as error:
            outside.append(f"{block.name}: {error}")
        else:
            fitting.append(block)
    return fitting, outside


def _quantize(
    block: GraphAttention, tokens: Array, stream_scale: float | None, options: HlsOptions
) -> QuantizedAttention:
    """The block in integers, calibrated with sequences [B, T, d]. Raises InputError where calibration data has keys or
    values of earlier tokens."""
    expect_whole_sequences(block, options)
    shape = shape_of(block, options)
    return quantize_attention(
        block.numbers, tokens, most_tokens=shape.tokens, cached=shape.cached, stream_scale=stream_scale
    )


def _project(
    block: GraphAttention,
    integers: QuantizedAttention,
    name: str,
    tokens: Array,
    common: Mapping[str, Any],
    part: FpgaPart,
    constraints: Constraints,
    earlier: Sequence[Project],
) -> Project:
    """The project of a block for sequences [B, T, d]. It prefers a number of lanes that pads tokens to the same width
    as an earlier project does."""
    shape, widths = integers.shape, {project.report.get("channel_width") for project in earlier}
    lanes = sorted(_LANES, key=lambda count: padded(shape.width, count) not in widths)
    estimate = choose_attention(shape, part, constraints, lanes)
    vectors = integers.quantized(tokens[0][: shape.positions])
    decibels = compare_attention(block, integers, tokens)
    report = {"quality": {"decibels": decibels, "tokens": tokens.shape[0] * tokens.shape[1]}, **common}
    if shape.cached:
        report["calls"] = reported_calls(estimate, len(vectors), integers.window)
        report["last_token"] = last_token(estimate, integers.window)
    return block_project(name, block.name, integers, ModelDesign(None, estimate.design), estimate, vectors, report)


def compare_attention(block: GraphAttention, integers: QuantizedAttention, tokens: Array) -> dict[str, float | None]:
    """Signal over quantisation noise by tensor, in dB."""
    floats = block.numbers.run(tokens)
    results = [attention_reference.run(integers, integers.quantized(sequence)) for sequence in tokens]
    scales = {
        "inputs": integers.input_scale,
        "query": integers.query_scale,
        "key": integers.key_scale,
        "value": integers.value_scale,
        "attended": integers.attended_scale,
        "output": integers.output_scale,
    }
    return {
        name: signal_to_noise(getattr(floats, name), np.stack([getattr(result, name) for result in results]) * scale)
        for name, scale in scales.items()
    }


ATTENTION = BlockKind("attention", _find, attention_agreement, _quantize, _project)
