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
from moec.ir.dialect import GROUPED_ARITHMETICS, is_moec
from moec.targets.base import Project, Projects
from moec.targets.hls.attention.mask import inputs_of_masks
from moec.targets.hls.attention_block import ATTENTION
from moec.targets.hls.block import BlockKind, Integers, run_integers
from moec.targets.hls.graph import calibrate
from moec.targets.hls.graph.agreement import Agreement, unseen
from moec.targets.hls.graph.outside import OutsideNodes, find_outside
from moec.targets.hls.graph.pads import without_pads
from moec.targets.hls.graph.stream_scales import StreamPart, shared_scales
from moec.targets.hls.hardware.parts import FpgaPart, find_part
from moec.targets.hls.moe import quality
from moec.targets.hls.moe_block import MOE
from moec.targets.hls.options import HlsOptions
from moec.targets.hls.whole_model import whole_project

Array = np.ndarray[Any, Any]

_SMALL_FLOATS = {*GROUPED_ARITHMETICS} - {"int8"}
"""The arithmetics of small floats."""
KINDS = (MOE, ATTENTION)
"""All kinds of blocks, in the order in which their projects are made."""
Found = tuple[BlockKind, Any]
"""A block of a graph, and its kind."""


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
                f"an FPGA computes in integers, whose scales come from data; add --calibrate FILE.npz with {names} (in "
                "Python: target_options=HlsOptions(calibration=...))"
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
        parts = [block for _, block in blocks]
        floats = calibrate.run_floats(model, parts, inputs)
        integers = self._quantized(blocks, floats.tokens)
        with calibrate.unrounded(model) as differs:
            seen = calibrate.run_floats(model, parts, inputs) if differs else floats
        compared = zip(blocks, seen.tokens, seen.results, strict=True)
        agreements = [kind.agreement(block, tokens, result) for (kind, block), tokens, result in compared]
        outputs = calibrate.run_with(model, parts, inputs, lambda index, tokens: run_integers(integers[index], tokens))
        model_report = quality.compare_outputs(floats.outputs, outputs)
        rest = find_outside(model, parts, calibrate.feeds_of(model, inputs))
        common = {
            "model_outputs": model_report,
            "outside": outside,
            "rest": dataclasses.asdict(rest),
            "by_block": whole,
        }
        projects = self._projects(blocks, integers, floats.tokens, common)
        for project in projects:
            of_node = [entry for entry in agreements if entry.node == project.report["node"]]
            project.report["agreement"] = [dataclasses.asdict(entry) for entry in of_node]
        warnings = _warnings(projects, padded, rest, (), agreements)
        return Projects(self.name, inputs_of_model, outputs_of_model, projects, warnings=warnings)

    def _whole(
        self, model: ir.Model, blocks: Sequence[Found], outside: Sequence[str], inputs: Mapping[str, Array]
    ) -> tuple[Project, OutsideNodes, list[Agreement]] | str:
        """The project of the whole model, the nodes outside it, and the agreement of its parts with the graph; or the
        reason why there is no such project."""
        moe, attention = ([block for own, block in blocks if own is kind] for kind in (MOE, ATTENTION))
        try:
            return whole_project(model, moe, attention, outside, inputs, self.part, self.options)
        except UnsupportedError as error:
            return str(error)

    def _blocks(self, model: ir.Model) -> tuple[list[Found], list[str]]:
        """The blocks that become projects, in the order of the graph, and the reasons why others stay outside."""
        blocks: list[Found] = []
        outside: list[str] = []
        for kind in KINDS:
            of_kind, refused = kind.find(model, self.part, self.options)
            blocks += [(kind, block) for block in of_kind]
            outside += refused
        places = {node: place for place, node in enumerate(model.graph.all_nodes())}

        def place(kind_and_block: Found) -> int:
            producer = kind_and_block[1].output.producer()
            return -1 if producer is None else places[producer]

        return sorted(blocks, key=place), outside

    def _quantized(self, blocks: Sequence[Found], tokens: Sequence[Array]) -> list[Integers]:
        """The blocks in integers. Blocks on one residual stream get the same scale for it."""
        pairs = list(zip(blocks, tokens, strict=True))
        streams = [
            StreamPart(block.tokens, block.output, scale)
            for (_, block), rows in pairs
            if (scale := block.numbers.needed_scale(rows)) is not None
        ]
        scales = dict(zip((stream.output for stream in streams), shared_scales(streams), strict=True))
        return [kind.quantize(block, rows, scales.get(block.output), self.options) for (kind, block), rows in pairs]

    def _projects(
        self, blocks: Sequence[Found], integers: Sequence[Integers], tokens: Sequence[Array], common: Mapping[str, Any]
    ) -> list[Project]:
        """The projects of the blocks: by kind, and within a kind in the order of the graph."""
        triples = list(zip(blocks, integers, tokens, strict=True))
        projects: list[Project] = []
        for kind in KINDS:
            of_kind = [(block, quantized, rows) for (own, block), quantized, rows in triples if own is kind]
            for place, (block, quantized, rows) in enumerate(of_kind):
                name, limits = f"{kind.name}_{place}", (self.part, self.options.constraints)
                projects.append(kind.project(block, quantized, name, rows, common, *limits, tuple(projects)))
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
        if is_moec(node) and (attribute := node.attributes.get("arithmetic")) and attribute.value in _SMALL_FLOATS:
            raise UnsupportedError(
                f"{node_name(node)}: rounds activations to {attribute.value}; expected integers, in which "
                "FPGAs compute; compile without --arithmetic"
            )
