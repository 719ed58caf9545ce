"""Blocks of any kind that become projects of their own: models of one layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.common.names import in_comment
from moec.targets.base import Project
from moec.targets.hls.attention.quantize import QuantizedAttention
from moec.targets.hls.graph.agreement import Agreement
from moec.targets.hls.hardware.costs import Estimate
from moec.targets.hls.hardware.parts import FpgaPart
from moec.targets.hls.model import reference
from moec.targets.hls.model.channels import model_channels
from moec.targets.hls.model.design import ModelDesign
from moec.targets.hls.model.plan import block_plan
from moec.targets.hls.model.project import estimated_project, model_files
from moec.targets.hls.moe.exploration import Constraints
from moec.targets.hls.moe.quantize import QuantizedBlock
from moec.targets.hls.options import HlsOptions

Array = np.ndarray[Any, Any]
Integers = QuantizedBlock | QuantizedAttention
"""A block in integers."""


@dataclasses.dataclass(frozen=True)
class BlockKind:
    """A kind of blocks of a graph that become projects. Their functions name the node in each UnsupportedError.

    - ``name``: the prefix of the names of projects.
    - ``find(model, part, options)``: all blocks of the kind, each a :class:`Replaceable` with the float ``numbers`` of
      the block, and the reasons why others stay outside. UnsupportedError for a block without which the model is not
      worth a project.
    - ``agreement(block, tokens, output)``: of the numbers with the graph on calibration data: ``tokens`` go into the
      block, ``output`` is the graph's result. UnsupportedError where the numbers compute something else.
    - ``quantize(block, tokens, stream_scale, options)``: the block in integers, calibrated with float tokens;
      ``stream_scale``: of its residual stream, None for a block without one. UnsupportedError for a block that the
      templates cannot compute; MoecError where the largest number of tokens is unknown.
    - ``project(block, integers, name, tokens, common, part, constraints, earlier)``: the project. Its testbench runs
      the first of the ``tokens`` of the calibration data. ``common``: entries that the reports of all projects of the
      model share; ``earlier``: projects made before it. UnsupportedError where no design fits the part.
    """

    name: str
    find: Callable[[ir.Model, FpgaPart, HlsOptions], tuple[Sequence[Any], list[str]]]
    agreement: Callable[[Any, Array, Array], Agreement]
    quantize: Callable[[Any, Array, float | None, HlsOptions], Integers]
    project: Callable[
        [Any, Any, str, Array, Mapping[str, Any], FpgaPart, Constraints, Sequence[Project]],
        Project,
    ]


def run_integers(integers: Integers, tokens: Array) -> Array:
    """Compute a block in integers on float tokens [T, d], or sequences [B, T, d]. Returns floats of the same shape."""
    sequences = tokens.reshape(-1, *tokens.shape[-2:])
    results = [reference.run_layer(integers, integers.quantized(sequence)) for sequence in sequences]
    return np.stack(results).reshape(tokens.shape) * integers.output_scale


def block_project(
    name: str,
    node: str,
    integers: Integers,
    design: ModelDesign,
    estimate: Estimate[Any, Any],
    vectors: Array,
    report: Mapping[str, Any],
    **words: str,
) -> Project:
    """The project of a block with the chosen ``design``. ``name``: of the project and its kernel, so that kernels of
    several blocks may be linked; ``vectors``: integer tokens [T, d] that the testbench runs; ``report``: entries of the
    kind; ``words``: for comments, as :func:`model_files` takes them."""
    files = model_files(
        design,
        block_plan(in_comment(node), integers),
        vectors,
        device=estimate.part.device,
        clock=estimate.clock_megahertz,
        top=name,
        **words,
    )
    channels = [channel.as_dict() for channel in model_channels(design)]
    whole = {"node": node, "channels": channels, "vectors": len(vectors), **report}
    return estimated_project(name, files, estimate.as_dict(), whole)
