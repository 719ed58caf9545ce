"""The FPGA target: every MoE block of a model becomes a project of HLS C++."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.common.specs import tensor_specs
from moec.errors import MoecError, UnsupportedError
from moec.targets.base import Project, Projects
from moec.targets.hls.attention.design import AttentionShape
from moec.targets.hls.attention.graph import GraphAttention, find_attention
from moec.targets.hls.attention.quantize import QuantizedAttention, quantize_attention
from moec.targets.hls.attention.target import LANES, attention_project, choose_attention, run_attention, shape_of
from moec.targets.hls.graph import calibrate
from moec.targets.hls.graph.outside import find_outside
from moec.targets.hls.graph.stream_scales import StreamPart, needed_scale, shared_scales
from moec.targets.hls.hardware.parts import Part, find_part
from moec.targets.hls.moe import quality, reference
from moec.targets.hls.moe.blocks import GraphBlock, find_blocks
from moec.targets.hls.moe.channels import channels_of
from moec.targets.hls.moe.design import padded
from moec.targets.hls.moe.exploration import explore
from moec.targets.hls.moe.loads import scaled_loads
from moec.targets.hls.moe.project import Description, checked_project, project_files
from moec.targets.hls.moe.quantize import QuantizedBlock, quantize
from moec.targets.hls.options import HlsOptions

Array = np.ndarray[Any, Any]
GraphPart = GraphBlock | GraphAttention
Integers = QuantizedBlock | QuantizedAttention

_MOST_VECTORS = 256
"""Tokens of a testbench: C simulation takes seconds for as many."""


@dataclasses.dataclass(frozen=True)
class HlsTarget:
    """Projects for a part, ``hls:zcu102``."""

    name: str
    part: Part
    options: HlsOptions

    @staticmethod
    def create(name: str, options: HlsOptions | None = None) -> HlsTarget:
        """Raises UnsupportedError listing the known parts for another."""
        _, _, part = name.partition(":")
        return HlsTarget(name, find_part(part), options or HlsOptions())

    def compile(self, model: ir.Model) -> Projects:
        """One project per MoE block, and one per attention block that the templates compute and that fits the part.

        Raises UnsupportedError, naming the node, for a block that the templates cannot compute or that does not fit the
        part; MoecError where calibration data or the largest number of tokens is missing.
        """
        blocks = find_blocks(model)
        if not blocks:
            raise UnsupportedError("holds no MoE block; --target hls makes projects of MoE blocks")
        inputs = self.options.calibration
        if inputs is None:
            names = ", ".join(str(spec) for spec in tensor_specs(model.graph.inputs))
            raise MoecError(
                f"an FPGA computes in integers, whose scales come from data: --calibrate FILE.npz with {names}"
            )
        attention, outside = self._attention_blocks(model)
        parts = _in_graph_order(model, [*blocks, *attention])
        floats = calibrate.run_floats(model, parts, inputs)
        quantized = self._quantize(parts, floats.tokens)
        outputs = calibrate.run_with(model, parts, inputs, lambda index, tokens: _compute(quantized[index], tokens))
        model_report = quality.compare_outputs(floats.outputs, outputs)
        rest = find_outside(model, parts, calibrate.feeds_of(model, inputs))
        common = {"model_outputs": model_report, "outside": outside, "rest": dataclasses.asdict(rest)}
        projects = self._projects(parts, quantized, floats.tokens, common)
        inputs_of_model, outputs_of_model = (
            tensor_specs(values) for values in (model.graph.inputs, model.graph.outputs)
        )
        warnings = [str(rest)] if rest.operators else []
        return Projects(self.name, inputs_of_model, outputs_of_model, projects, warnings=warnings)

    def _attention_blocks(self, model: ir.Model) -> tuple[list[GraphAttention], list[str]]:
        """Those that become projects, and why others stay outside."""
        found, outside = find_attention(model)
        fitting = []
        for block in found:
            try:
                choose_attention(self._attention_shape(block), self.part, self.options.constraints)
            except UnsupportedError as error:
                outside.append(f"{block.name}: {error}")
            else:
                fitting.append(block)
        return fitting, outside

    def _attention_shape(self, block: GraphAttention) -> AttentionShape:
        return shape_of(block, self.options.max_tokens)

    def _quantize(self, parts: Sequence[GraphPart], tokens: Sequence[Array]) -> list[Integers]:
        """Blocks that share a residual stream share the scale of its steps."""
        needed = [
            StreamPart(part.tokens, part.output, needed_scale(part.numbers, one))
            for part, one in zip(parts, tokens, strict=True)
            if part.numbers.norm is not None
        ]
        scales = dict(zip((part.output for part in needed), shared_scales(needed), strict=True))
        return [self._quantize_one(part, one, scales.get(part.output)) for part, one in zip(parts, tokens, strict=True)]

    def _quantize_one(self, part: GraphPart, tokens: Array, stream_scale: float | None) -> Integers:
        if isinstance(part, GraphAttention):
            most = self._attention_shape(part).tokens
            return quantize_attention(part.numbers, tokens, most_tokens=most, stream_scale=stream_scale)
        return quantize(
            part.numbers,
            tokens,
            most_tokens=self._most_tokens(part),
            weight_bits=self.options.weight_bits,
            stream_scale=stream_scale,
        )

    def _projects(
        self,
        parts: Sequence[GraphPart],
        quantized: Sequence[Integers],
        tokens: Sequence[Array],
        common: Mapping[str, Any],
    ) -> list[Project]:
        """MoE blocks first. Attention blocks take a number of lanes with which tokens are padded as theirs are."""
        given = list(zip(parts, quantized, tokens, strict=True))
        projects: list[Project] = []
        for block, integers, rows in given:
            if isinstance(block, GraphBlock) and isinstance(integers, QuantizedBlock):
                projects.append(self._project(f"moe_{len(projects)}", block, integers, rows, common))
        widths = {project.report["channel_width"] for project in projects}
        found = 0
        for block, integers, sequences in given:
            if isinstance(block, GraphAttention) and isinstance(integers, QuantizedAttention):
                lanes = sorted(LANES, key=lambda count: padded(integers.shape.width, count) not in widths)
                chosen = choose_attention(integers.shape, self.part, self.options.constraints, lanes)
                projects.append(attention_project(f"attention_{found}", block, integers, sequences, chosen, common))
                found += 1
        return projects

    def _most_tokens(self, block: GraphBlock) -> int:
        sizes = list(block.tokens.shape or ())[:-1]
        fixed = all(isinstance(size, int) for size in sizes)
        if self.options.max_tokens is None and not (sizes and fixed):
            shape = ", ".join(map(str, block.tokens.shape or ("?",)))
            raise MoecError(
                f"{block.name}: takes [{shape}] tokens, a number that only the caller knows; "
                "say what memories on the chip have to hold with --max-tokens"
            )
        return self.options.max_tokens or math.prod(int(size) for size in sizes if isinstance(size, int))

    def _project(
        self, name: str, block: GraphBlock, quantized: QuantizedBlock, tokens: Array, common: Mapping[str, Any]
    ) -> Project:
        shape = dataclasses.replace(
            quantized.shape, up_sum_bits=quantized.up.sum_bits, down_sum_bits=quantized.down.sum_bits
        )
        steps = quantized.quantized(tokens)
        expected = reference.run(quantized, steps)
        try:
            loads = scaled_loads(shape, expected.loads[: shape.experts].tolist(), len(tokens))
            exploration = explore(shape, self.part, self.options.constraints, loads)
        except UnsupportedError as error:
            raise UnsupportedError(f"{block.name}: {error}") from error
        estimate = exploration.chosen.estimate
        description = Description(
            block.name,
            routing=_words(block.numbers.routing),
            experts=_words(block.numbers.experts),
            device=self.part.device,
            clock=estimate.clock_megahertz,
        )
        vectors = steps[: min(shape.tokens, _MOST_VECTORS)]
        files = project_files(estimate.design, quantized, vectors, description)
        report = {
            "node": block.name,
            "exploration": exploration.as_dict(),
            "channels": [dataclasses.asdict(channel) for channel in channels_of(estimate.design)],
            "quality": dataclasses.asdict(quality.compare(block.numbers, quantized, tokens)),
            "channel_width": estimate.design.width,
            "vectors": len(vectors),
            **common,
        }
        return checked_project(name, files, estimate.as_dict(), report)


def _in_graph_order(model: ir.Model, parts: Sequence[GraphPart]) -> list[GraphPart]:
    places = {node: place for place, node in enumerate(model.graph.all_nodes())}

    def place(part: GraphPart) -> int:
        producer = part.output.producer()
        return -1 if producer is None else places[producer]

    return sorted(parts, key=place)


def _compute(block: Integers, tokens: Array) -> Array:
    if isinstance(block, QuantizedAttention):
        return run_attention(block, tokens)
    return reference.run(block, block.quantized(tokens)).output * block.output_scale


def _words(spec: Any) -> str:
    """The fields that are not the default."""
    parts: Sequence[str] = [
        f"{field.name.replace('_', ' ')} {getattr(spec, field.name)}"
        for field in dataclasses.fields(spec)
        if getattr(spec, field.name) != field.default
    ]
    return ", ".join(parts) or "the default"
