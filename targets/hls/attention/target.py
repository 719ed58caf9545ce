"""Projects of the attention blocks of a graph: the implementation of :mod:`moec.targets.hls.block` for this kind."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from moec.common.errors import InputError, UnsupportedError
from moec.targets.base import Project
from moec.targets.hls.attention import reference as attention_reference
from moec.targets.hls.attention.agreement import attention_agreement
from moec.targets.hls.attention.channels import attention_channels
from moec.targets.hls.attention.estimate import AttentionEstimate, attention_cycles, estimate_attention
from moec.targets.hls.attention.graph import SOME_POSITIONS, GraphAttention, find_attention
from moec.targets.hls.attention.project import attention_files, calls_of
from moec.targets.hls.attention.quantize import QuantizedAttention, quantize_attention
from moec.targets.hls.attention.quantize import shape_of as attention_shape
from moec.targets.hls.design.attention import AttentionDesign, AttentionShape
from moec.targets.hls.design.numbers import accumulator_bits, padded
from moec.targets.hls.graph.agreement import Agreement
from moec.targets.hls.hardware.costs import RESOURCE_NAMES
from moec.targets.hls.hardware.parts import FpgaPart
from moec.targets.hls.moe.exploration import Constraints
from moec.targets.hls.moe.project import estimated_project
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
        raise UnsupportedError("only the caller knows how long a sequence is; say it with --max-tokens")
    if block.past and not block.numbers.causal:
        raise UnsupportedError("it takes keys of earlier tokens, and none of its tokens is behind another")
    length = options.max_length or (tokens if block.past else 0)
    return attention_shape(block.numbers, min(tokens, length or tokens), length if block.numbers.causal else 0)


def expect_whole_sequences(block: GraphAttention, options: HlsOptions) -> None:
    """Check that calibration data holds sequences from their first token on. Raises InputError where it has keys or
    values of earlier tokens."""
    data = options.calibration or {}
    for name in (str(value.name) for value in block.past):
        if name in data and (count := data[name].shape[2]):
            raise InputError(
                f"calibration data for {name!r} has the keys or values of {count} earlier tokens, in the floats of the "
                "graph; a project makes its own, so leave all such inputs out, and give sequences from their first "
                "token on, with masks and positions of these tokens alone"
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


@dataclasses.dataclass(frozen=True)
class AttentionBlock:
    """An attention block of a graph, with the part and the options of its project."""

    kind: ClassVar[str] = "attention"

    graph: GraphAttention
    part: FpgaPart
    options: HlsOptions

    @classmethod
    def find(cls, model: ir.Model, part: FpgaPart, options: HlsOptions) -> tuple[list[AttentionBlock], list[str]]:
        """The blocks that the templates can compute and that fit the part, and the reasons why others stay outside."""
        blocks, outside = find_attention(model, options.max_length or options.max_tokens or SOME_POSITIONS)
        fitting = []
        for graph in blocks:
            try:
                choose_attention(shape_of(graph, options), part, options.constraints)
            except UnsupportedError as error:
                outside.append(f"{graph.name}: {error}")
            else:
                fitting.append(cls(graph, part, options))
        return fitting, outside

    def agreement(self, tokens: Array, output: Array) -> Agreement:
        return attention_agreement(self.graph, tokens, output)

    def needed_scale(self, tokens: Array) -> float:
        return self.graph.numbers.needed_scale(tokens)

    def quantize(self, tokens: Array, stream_scale: float | None) -> IntegerAttentionBlock:
        """The block in integers, calibrated with sequences [B, T, d]. Raises as
        :func:`~moec.targets.hls.attention.quantize.quantize_attention`, and InputError where calibration data has keys
        or values of earlier tokens."""
        expect_whole_sequences(self.graph, self.options)
        shape = shape_of(self.graph, self.options)
        quantized = quantize_attention(
            self.graph.numbers, tokens, most_tokens=shape.tokens, cached=shape.cached, stream_scale=stream_scale
        )
        return IntegerAttentionBlock(self, quantized)


@dataclasses.dataclass(frozen=True)
class IntegerAttentionBlock:
    """An attention block in integers, and the block that it was made from."""

    block: AttentionBlock
    quantized: QuantizedAttention

    def run(self, tokens: Array) -> Array:
        """Compute the block in integers on float sequences [B, T, d]; returns floats."""
        quantized = self.quantized
        rows = [attention_reference.run(quantized, quantized.quantized(sequence)).output for sequence in tokens]
        return np.stack(rows) * np.float32(quantized.output_scale)

    def project(self, name: str, tokens: Array, common: Mapping[str, Any], earlier: Sequence[Project]) -> Project:
        """The project of the block for sequences [B, T, d]. It prefers a number of lanes that pads tokens to the same
        width as an earlier project does."""
        graph, quantized = self.block.graph, self.quantized
        widths = {project.report.get("channel_width") for project in earlier}
        lanes = sorted(_LANES, key=lambda count: padded(quantized.shape.width, count) not in widths)
        estimate = choose_attention(quantized.shape, self.block.part, self.block.options.constraints, lanes)
        vectors = quantized.quantized(tokens[0][: estimate.design.shape.positions])
        files = attention_files(
            estimate.design,
            quantized,
            vectors,
            name=graph.name,
            device=estimate.part.device,
            clock=estimate.clock_megahertz,
        )
        report = {
            "node": graph.name,
            "channels": [dataclasses.asdict(channel) for channel in attention_channels(estimate.design)],
            "quality": {
                "decibels": compare_attention(graph, quantized, tokens),
                "tokens": tokens.shape[0] * tokens.shape[1],
            },
            "vectors": len(vectors),
            **common,
        }
        if quantized.shape.cached:
            report["calls"] = reported_calls(estimate, len(vectors), quantized.window)
            report["last_token"] = last_token(estimate, quantized.window)
        return estimated_project(name, files, estimate.as_dict(), report)


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
