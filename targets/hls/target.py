"""The FPGA target: projects of HLS C++, one for a whole model if a single design computes it, else one per block."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.common.errors import MoecError, UnsupportedError
from moec.common.names import node_name
from moec.common.specs import tensor_specs
from moec.ir.dialect import is_moec
from moec.targets.base import Project, Projects
from moec.targets.hls.attention.mask import inputs_of_masks
from moec.targets.hls.attention.target import AttentionBlock
from moec.targets.hls.block import FpgaBlock, IntegerBlock
from moec.targets.hls.graph import calibrate
from moec.targets.hls.graph.agreement import Agreement, unseen
from moec.targets.hls.graph.outside import OutsideNodes, find_outside
from moec.targets.hls.graph.pads import without_pads
from moec.targets.hls.graph.stream_scales import StreamPart, shared_scales
from moec.targets.hls.hardware.parts import FpgaPart, find_part
from moec.targets.hls.model.target import whole_project
from moec.targets.hls.moe import quality
from moec.targets.hls.moe.target import MoeBlock
from moec.targets.hls.options import HlsOptions

Array = np.ndarray[Any, Any]

BLOCKS: tuple[type[FpgaBlock], ...] = (MoeBlock, AttentionBlock)
"""All kinds of blocks, in the order in which their projects are made."""


@dataclasses.dataclass(frozen=True)
class HlsTarget:
    """Projects for a part, ``hls:zcu102``."""

    name: str
    part: FpgaPart
    options: HlsOptions

    @staticmethod
    def create(name: str, options: HlsOptions | None = None) -> HlsTarget:
        """The target called ``hls:PART``. Raises MoecError, listing the known parts, for an unknown one."""
        _, _, part = name.partition(":")
        return HlsTarget(name, find_part(part), options or HlsOptions())

    def compile(self, model: ir.Model) -> Projects:
        """One project, if a design that fits the part computes the whole model. Else one per MoE block, and one per
        attention block that the templates can compute and that fits the part.

        Raises UnsupportedError, naming the node, for a block that the templates cannot compute or that does not fit the
        part, or a product whose activations are to be rounded to fp8; MoecError where calibration data or the largest
        number of tokens is missing.
        """
        _check_arithmetic(model)
        blocks, outside = self._blocks(model)
        inputs = self.options.calibration
        if inputs is None:
            names = ", ".join(str(spec) for spec in tensor_specs(model.graph.inputs))
            raise MoecError(
                f"an FPGA computes in integers, whose scales come from data: --calibrate FILE.npz with {names}"
            )
        calibrate.feeds_of(model, inputs)
        inputs, padded = without_pads(inputs, {str(value.name) for value in inputs_of_masks(model)})
        inputs_of_model, outputs_of_model = (
            tensor_specs(values) for values in (model.graph.inputs, model.graph.outputs)
        )
        whole = "" if self.options.by_block else self._whole(model, blocks, outside, inputs)
        if not isinstance(whole, str):
            project, rest, agreements = whole
            warnings = _warnings([project], padded, rest, project.report["outside"], agreements)
            return Projects(self.name, inputs_of_model, outputs_of_model, [project], warnings=warnings)
        parts = [block.graph for block in blocks]
        floats = calibrate.run_floats(model, parts, inputs)
        integers = _quantized(blocks, floats.tokens)
        with calibrate.unrounded(model) as differs:
            seen = calibrate.run_floats(model, parts, inputs) if differs else floats
        compared = zip(blocks, seen.tokens, seen.results, strict=True)
        agreements = [block.agreement(tokens, result) for block, tokens, result in compared]
        outputs = calibrate.run_with(model, parts, inputs, lambda index, tokens: integers[index].run(tokens))
        model_report = quality.compare_outputs(floats.outputs, outputs)
        rest = find_outside(model, parts, calibrate.feeds_of(model, inputs))
        common = {
            "model_outputs": model_report,
            "outside": outside,
            "rest": dataclasses.asdict(rest),
            "by_block": whole,
        }
        projects = _projects(blocks, integers, floats.tokens, common)
        for project in projects:
            of_node = [entry for entry in agreements if entry.node == project.report["node"]]
            project.report["agreement"] = [dataclasses.asdict(entry) for entry in of_node]
        warnings = _warnings(projects, padded, rest, (), agreements)
        return Projects(self.name, inputs_of_model, outputs_of_model, projects, warnings=warnings)

    def _whole(
        self, model: ir.Model, blocks: Sequence[FpgaBlock], outside: Sequence[str], inputs: Mapping[str, Array]
    ) -> tuple[Project, OutsideNodes, list[Agreement]] | str:
        """The project of the whole model, the nodes outside it, and the agreement of its parts with the graph; or the
        reason why there is no such project."""
        moe = [block.graph for block in blocks if isinstance(block, MoeBlock)]
        attention = [block.graph for block in blocks if isinstance(block, AttentionBlock)]
        try:
            return whole_project(model, moe, attention, outside, inputs, self.part, self.options)
        except UnsupportedError as error:
            return str(error)

    def _blocks(self, model: ir.Model) -> tuple[list[FpgaBlock], list[str]]:
        """The blocks that become projects, in the order of the graph, and the reasons why others stay outside."""
        blocks: list[FpgaBlock] = []
        outside: list[str] = []
        for kind in BLOCKS:
            of_kind, refused = kind.find(model, self.part, self.options)
            blocks += of_kind
            outside += refused
        places = {node: place for place, node in enumerate(model.graph.all_nodes())}

        def place(block: FpgaBlock) -> int:
            producer = block.graph.output.producer()
            return -1 if producer is None else places[producer]

        return sorted(blocks, key=place), outside


def _quantized(blocks: Sequence[FpgaBlock], tokens: Sequence[Array]) -> list[IntegerBlock]:
    """The blocks in integers. Blocks on one residual stream get the same scale for it."""
    pairs = list(zip(blocks, tokens, strict=True))
    streams = [
        StreamPart(block.graph.tokens, block.graph.output, scale)
        for block, rows in pairs
        if (scale := block.needed_scale(rows)) is not None
    ]
    scales = dict(zip((stream.output for stream in streams), shared_scales(streams), strict=True))
    return [block.quantize(rows, scales.get(block.graph.output)) for block, rows in pairs]


def _projects(
    blocks: Sequence[FpgaBlock], integers: Sequence[IntegerBlock], tokens: Sequence[Array], common: Mapping[str, Any]
) -> list[Project]:
    """The projects of the blocks: by kind, and within a kind in the order of the graph."""
    triples = list(zip(blocks, integers, tokens, strict=True))
    projects: list[Project] = []
    for kind in BLOCKS:
        of_kind = [(quantized, rows) for block, quantized, rows in triples if block.kind == kind.kind]
        for place, (quantized, rows) in enumerate(of_kind):
            projects.append(quantized.project(f"{kind.kind}_{place}", rows, common, tuple(projects)))
    return projects


def _warnings(
    projects: Sequence[Project],
    padded: str | None,
    rest: OutsideNodes,
    outside: Sequence[str],
    agreements: Sequence[Agreement],
) -> list[str]:
    """Warnings about the projects. ``padded``: a remark on pads in the calibration data; ``outside``: reasons why parts
    of a whole model are in no project."""
    noisy = quality.too_noisy([project.report for project in projects])
    listed = (noisy, padded, str(rest) if rest.operators else None, *outside, unseen(agreements))
    return [text for text in listed if text is not None]


def _check_arithmetic(model: ir.Model) -> None:
    for node in model.graph:
        if is_moec(node) and (attribute := node.attributes.get("arithmetic")) and attribute.value == "fp8":
            raise UnsupportedError(
                f"{node_name(node)}: rounds activations to fp8, and FPGA projects compute in integers; compile without "
                "--arithmetic"
            )
