"""Projects of the MoE blocks of a graph: the implementation of :mod:`moec.targets.hls.block` for this kind."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from moec.common.errors import MoecError, UnsupportedError
from moec.targets.base import Project
from moec.targets.hls.design.channels import channels_of
from moec.targets.hls.graph.agreement import Agreement
from moec.targets.hls.hardware.parts import FpgaPart
from moec.targets.hls.moe import quality, reference
from moec.targets.hls.moe.agreement import experts_agreement
from moec.targets.hls.moe.blocks import GraphBlock, find_blocks
from moec.targets.hls.moe.exploration import Exploration, explore
from moec.targets.hls.moe.loads import scaled_loads
from moec.targets.hls.moe.project import Description, estimated_project, project_files
from moec.targets.hls.moe.quantize import QuantizedBlock, quantize
from moec.targets.hls.options import HlsOptions

Array = np.ndarray[Any, Any]

_MOST_VECTORS = 256
"""The most tokens of a testbench, for which C simulation takes seconds."""


@dataclasses.dataclass(frozen=True)
class MoeBlock:
    """A MoE block of a graph, with the part and the options of its project."""

    kind: ClassVar[str] = "moe"

    graph: GraphBlock
    part: FpgaPart
    options: HlsOptions

    @classmethod
    def find(cls, model: ir.Model, part: FpgaPart, options: HlsOptions) -> tuple[list[MoeBlock], list[str]]:
        """All MoE blocks; none may stay outside. Raises UnsupportedError for a model without any, and, naming the node,
        for a block that cannot be cut out."""
        blocks = find_blocks(model)
        if not blocks:
            raise UnsupportedError("holds no MoE block; --target hls makes projects of MoE blocks")
        return [cls(block, part, options) for block in blocks], []

    def agreement(self, tokens: Array, output: Array) -> Agreement:
        return experts_agreement(self.graph, tokens, output)

    def needed_scale(self, tokens: Array) -> float | None:
        return self.graph.numbers.needed_scale(tokens)

    def quantize(self, tokens: Array, stream_scale: float | None) -> IntegerMoeBlock:
        """The block in integers, calibrated with tokens [N, d]. Raises as
        :func:`~moec.targets.hls.moe.quantize.quantize`, and MoecError where neither the graph nor the user limits the
        number of tokens."""
        quantized = quantize(
            self.graph.numbers,
            tokens,
            most_tokens=self._most_tokens(),
            weight_bits=self.options.weight_bits,
            stream_scale=stream_scale,
        )
        return IntegerMoeBlock(self, quantized)

    def _most_tokens(self) -> int:
        sizes = list(self.graph.tokens.shape or ())[:-1]
        fixed = all(isinstance(size, int) for size in sizes)
        if self.options.max_tokens is None and not (sizes and fixed):
            shape = ", ".join(map(str, self.graph.tokens.shape or ("?",)))
            raise MoecError(
                f"{self.graph.name}: takes [{shape}] tokens, a number that only the caller knows; "
                "say what memories on the chip have to hold with --max-tokens"
            )
        return self.options.max_tokens or math.prod(int(size) for size in sizes if isinstance(size, int))


@dataclasses.dataclass(frozen=True)
class IntegerMoeBlock:
    """A MoE block in integers, and the block that it was made from."""

    block: MoeBlock
    quantized: QuantizedBlock

    def run(self, tokens: Array) -> Array:
        """Compute the block in integers on float tokens [N, d]; returns floats."""
        return reference.run(self.quantized, self.quantized.quantized(tokens)).output * self.quantized.output_scale

    def project(self, name: str, tokens: Array, common: Mapping[str, Any], earlier: Sequence[Project]) -> Project:
        """The project of the block for tokens [N, d]. Raises UnsupportedError, naming the node, where no design fits
        the part."""
        graph, quantized = self.block.graph, self.quantized
        steps = quantized.quantized(tokens)
        exploration = self._explore(steps)
        estimate = exploration.chosen.estimate
        description = Description(
            graph.name,
            routing=_words(graph.numbers.routing),
            experts=_words(graph.numbers.experts),
            device=self.block.part.device,
            clock=estimate.clock_megahertz,
        )
        vectors = steps[: min(quantized.shape.tokens, _MOST_VECTORS)]
        files = project_files(estimate.design, quantized, vectors, description)
        report = {
            "node": graph.name,
            "weights": {graph.name: f"int{quantized.shape.weight_bits}"},
            "exploration": exploration.as_dict(),
            "channels": [dataclasses.asdict(channel) for channel in channels_of(estimate.design)],
            "quality": dataclasses.asdict(quality.compare(graph.numbers, quantized, tokens)),
            "channel_width": estimate.design.width,
            "vectors": len(vectors),
            **common,
        }
        return estimated_project(name, files, estimate.as_dict(), report)

    def _explore(self, steps: Array) -> Exploration:
        """Explore designs for the distribution of tokens over experts on the calibration data, ``steps`` [N, d]."""
        quantized = self.quantized
        shape = dataclasses.replace(
            quantized.shape,
            up_sum_bits=quantized.up.sum_bits,
            down_sum_bits=quantized.down.sum_bits,
            up_total_bits=quantized.up.total_bits,
            down_total_bits=quantized.down.total_bits,
        )
        counted = reference.run(quantized, steps).loads[: shape.experts].tolist()
        try:
            loads = scaled_loads(shape, counted, len(steps))
            return explore(shape, self.block.part, self.block.options.constraints, loads)
        except UnsupportedError as error:
            raise UnsupportedError(f"{self.block.graph.name}: {error}") from error


def _words(spec: Any) -> str:
    """The fields of a spec that differ from their defaults, in words."""
    parts: Sequence[str] = [
        f"{field.name.replace('_', ' ')} {getattr(spec, field.name)}"
        for field in dataclasses.fields(spec)
        if getattr(spec, field.name) != field.default
    ]
    return ", ".join(parts) or "the default"
