"""From a graph that is a whole vision transformer to one project."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.ir.names import in_comment
from moec.targets.base import Project
from moec.targets.hls.attention.graph import GraphAttention
from moec.targets.hls.graph.calibrate import run_floats
from moec.targets.hls.graph.outside import Outside
from moec.targets.hls.hardware.parts import Part
from moec.targets.hls.model import reference
from moec.targets.hls.model.channels import model_channels
from moec.targets.hls.model.design import ModelDesign
from moec.targets.hls.model.estimate import choose_model, loads_of
from moec.targets.hls.model.graph import find_model
from moec.targets.hls.model.plan import ModelPlan
from moec.targets.hls.model.project import TOP, model_files
from moec.targets.hls.model.quantize import quantize_model
from moec.targets.hls.moe import quality
from moec.targets.hls.moe.blocks import GraphBlock
from moec.targets.hls.moe.project import checked_project
from moec.targets.hls.options import HlsOptions

Array = np.ndarray[Any, Any]

_MOST_IMAGES = 64
"""Images of the calibration data that integers are compared with floats on."""


def whole_project(
    model: ir.Model,
    moe: Sequence[GraphBlock],
    attention: Sequence[GraphAttention],
    refused: Sequence[str],
    inputs: Mapping[str, Array],
    part: Part,
    options: HlsOptions,
) -> Project:
    """``moe``, ``attention`` and ``refused``: the blocks of the graph, and why others are none. ``inputs``: calibration
    data, the first image of which the testbench runs.

    Raises UnsupportedError, saying why, where the model as a whole is no design that fits the part.
    """
    graph = find_model(model, moe, attention, refused)
    name = in_comment(model.graph.name or TOP)
    plan = quantize_model(model, graph, inputs, name=name, weight_bits=options.weight_bits)
    (images,) = inputs.values()
    given = images[:_MOST_IMAGES]
    first = plan.input_steps(given[0])
    estimate = choose_model(plan, loads_of(plan, first), part, options.constraints)
    floats = {  # a graph may take no other number of images than it was given
        key: array[: len(array) * len(given) // len(images)]
        for key, array in run_floats(model, [], inputs).outputs.items()
    }
    outputs = {key: _integers(plan, given).reshape(array.shape) for key, array in floats.items()}
    compared = quality.compare_outputs(floats, outputs)
    files = model_files(estimate.design, plan, first, device=part.device, clock=estimate.clock_megahertz)
    report = {
        "node": f"the whole model, {name}",
        "kernels": _kernels(estimate.design),
        "channels": [dataclasses.asdict(channel) for channel in model_channels(estimate.design)],
        "quality": {
            "decibels": {key: one["decibels"] for key, one in compared.items()},
            "tokens": len(given) * plan.tokens,
        },
        "vectors": plan.tokens,
        "model_outputs": compared,
        "outside": [],
        "rest": dataclasses.asdict(Outside((), 0.0, ())),
    }
    return checked_project("model", files, estimate.as_dict(), report)


def _integers(plan: ModelPlan, images: Array) -> Array:
    """Images [B, ...] → outputs [B, rows, classes], in floats."""
    rows = [reference.run(plan, plan.input_steps(image)).output for image in images]
    return np.stack(rows) * np.float32(plan.output_scale)


def _kernels(design: ModelDesign) -> dict[str, int | None]:
    """What ``moec inspect`` says of the design."""
    experts, attention = design.experts, design.attention
    return {
        "lanes": experts.lanes_in,
        "attention_lanes": None if attention is None else attention.lanes,
        "hidden_tile": experts.hidden_tile,
        "router_lanes": experts.router_lanes,
    }
