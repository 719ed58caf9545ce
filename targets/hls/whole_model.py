"""The project of a graph that is a whole vision transformer, or the layers of a decoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.common.errors import UnsupportedError
from moec.common.names import in_comment
from moec.targets.base import Project
from moec.targets.hls.attention.graph import GraphAttention
from moec.targets.hls.attention_block import expect_whole_sequences
from moec.targets.hls.attention_block import shape_of as attention_shape
from moec.targets.hls.graph.agreement import Agreement
from moec.targets.hls.graph.calibrate import evaluate, feeds_of, unrounded
from moec.targets.hls.graph.outside import OutsideNodes, find_outside
from moec.targets.hls.hardware.parts import FpgaPart
from moec.targets.hls.model import reference
from moec.targets.hls.model.agreement import model_agreements
from moec.targets.hls.model.calls import reported_calls
from moec.targets.hls.model.channels import model_channels
from moec.targets.hls.model.design import ModelDesign
from moec.targets.hls.model.estimate import choose_model, loads_of
from moec.targets.hls.model.float_model import GraphModel
from moec.targets.hls.model.graph import find_decoder, find_model, without_head
from moec.targets.hls.model.masters import with_masters
from moec.targets.hls.model.plan import ModelPlan, stream_steps
from moec.targets.hls.model.project import TOP, estimated_project, model_files
from moec.targets.hls.model.quantize import quantize_model
from moec.targets.hls.moe import quality
from moec.targets.hls.moe.blocks import GraphBlock
from moec.targets.hls.moe.quantize import QuantizedBlock
from moec.targets.hls.options import HlsOptions

Array = np.ndarray[Any, Any]

_MOST_IMAGES = 64
"""The most images of the calibration data that integers are compared with floats on."""


def whole_project(
    model: ir.Model,
    moe: Sequence[GraphBlock],
    attention: Sequence[GraphAttention],
    refused: Sequence[str],
    inputs: Mapping[str, Array],
    part: FpgaPart,
    options: HlsOptions,
) -> tuple[Project, OutsideNodes, list[Agreement]]:
    """The project of the whole model, the nodes outside it, and the agreement of its parts with the graph. ``moe``,
    ``attention`` and ``refused``: the blocks of the graph, and the reasons why other candidates are none. ``inputs``:
    calibration data; the testbench runs its first image or sequence.

    Raises UnsupportedError, with the reason, where no single design for the model fits the part, and where the float
    form of a part differs from the graph.
    """
    if not attention or not all(block.numbers.causal for block in attention):
        return _project(model, find_model(model, moe, attention, refused), inputs, part, options)
    for block in attention:
        expect_whole_sequences(block, options)
    shape = attention_shape(attention[0], options)
    graph = find_decoder(model, moe, attention, refused, shape.tokens, shape.cached)
    if graph.head is not None:
        try:
            return _project(model, graph, inputs, part, options)
        except UnsupportedError as error:
            graph = without_head(graph, str(error))
    return _project(model, graph, inputs, part, options)


def _project(
    model: ir.Model, graph: GraphModel, inputs: Mapping[str, Array], part: FpgaPart, options: HlsOptions
) -> tuple[Project, OutsideNodes, list[Agreement]]:
    name = in_comment(model.graph.name or TOP)
    plan = quantize_model(model, graph, inputs, name=name, weight_bits=options.weight_bits)
    seen = _seen(model, graph, inputs)
    with unrounded(model) as differs:
        exact = _seen(model, graph, inputs) if differs else seen
    agreements = model_agreements(graph, exact.sequences, exact.streams, exact.outputs[_place(model, graph)])
    sequences, floats, outputs = _compared(model, graph, plan, seen)
    first = plan.input_steps(sequences[0])
    loads = loads_of(plan, first[: plan.tokens])
    chosen = choose_model(plan, loads, part, options.constraints)
    estimate = with_masters(chosen, plan, loads, part, options.constraints)
    compared = quality.compare_outputs(floats, outputs)
    files = model_files(estimate.design, plan, first, device=part.device, clock=estimate.clock_megahertz)
    is_whole = graph.source is _input_of(model)
    rest = OutsideNodes((), 0.0, ()) if is_whole else find_outside(model, graph.parts, feeds_of(model, inputs))
    report = {
        "node": f"all layers of {name}" if rest.operators else f"the whole model, {name}",
        "weights": {
            block.name: f"int{layer.shape.weight_bits}"
            for block, layer in zip(graph.blocks, plan.blocks, strict=True)
            if isinstance(layer, QuantizedBlock)
        },
        "kernels": _kernels(estimate.design),
        "channels": [channel.as_dict() for channel in model_channels(estimate.design)],
        "quality": {
            "decibels": {key: entry["decibels"] for key, entry in compared.items()},
            "tokens": len(sequences) * len(first),
        },
        "layers": _by_layer(graph, plan, seen),
        "vectors": len(first),
        "model_outputs": compared,
        "outside": ["the head: " + graph.headless.removeprefix("the head: ")] if graph.headless else [],
        "rest": dataclasses.asdict(rest),
        **reported_calls(estimate, plan, first),
        "agreement": [dataclasses.asdict(entry) for entry in agreements],
    }
    return estimated_project("model", files, estimate.as_dict(), report), rest, agreements


def _input_of(model: ir.Model) -> ir.Value | None:
    """The model's input if it has only one, else None."""
    inputs = [value for value in model.graph.inputs if value.name not in model.graph.initializers]
    return inputs[0] if len(inputs) == 1 else None


@dataclasses.dataclass(frozen=True)
class _CalibrationArrays:
    """The graph's arrays for the calibration data ``feeds``: the ``sequences`` that the design takes, the ``streams``
    that each block takes and that the last one returns, and the ``outputs`` of the model."""

    feeds: dict[ir.Value, Array]
    sequences: Array
    streams: list[Array]
    outputs: list[Array]


def _seen(model: ir.Model, graph: GraphModel, inputs: Mapping[str, Array]) -> _CalibrationArrays:
    feeds, streams = feeds_of(model, inputs), [*(block.tokens for block in graph.blocks), graph.stream]
    sequences, *rest = evaluate(model, feeds, [graph.source, *streams, *model.graph.outputs])
    return _CalibrationArrays(feeds, sequences, rest[: len(streams)], rest[len(streams) :])


def _compared(
    model: ir.Model, graph: GraphModel, plan: ModelPlan, seen: _CalibrationArrays
) -> tuple[Array, dict[str, Array], dict[str, Array]]:
    """The design's inputs from the calibration data, limited in number, and the model's outputs for them in floats and
    in integers. The graph may have a fixed batch, so it runs on all images, and its outputs are cut."""
    sequences, has_result = seen.sequences, graph.result in model.graph.outputs
    results = [graph.result] if has_result else list(model.graph.outputs)
    in_floats = [seen.outputs[_place(model, graph)]] if has_result else seen.outputs
    images = sequences[:_MOST_IMAGES]
    computed = _integers(plan, images)
    if not has_result:
        # The rest of the model runs on the output of the layers.
        kept = {**seen.feeds, graph.stream: np.concatenate([computed, sequences[len(images) :]]).astype(np.float32)}
        integers = evaluate(model, kept, results)
    else:
        integers = [computed]
    count, total = len(images), len(sequences)
    floats = {
        str(value.name): array[: len(array) * count // total] for value, array in zip(results, in_floats, strict=True)
    }
    cut = [array if has_result else array[: len(array) * count // total] for array in integers]
    return (
        images,
        floats,
        {name: array.reshape(floats[name].shape) for name, array in zip(floats, cut, strict=True)},
    )


def _by_layer(graph: GraphModel, plan: ModelPlan, seen: _CalibrationArrays) -> list[dict[str, Any]]:
    """The error of each block in integers against the floats, on its input in the graph for the first image or
    sequence."""
    count, scale = len(seen.sequences), plan.stream_scale
    first, *others = [stream.reshape(count, -1, plan.width)[0].astype(np.float32) for stream in seen.streams]
    layers = []
    for block, layer, inputs, expected in zip(graph.blocks, plan.blocks, [first, *others], others, strict=False):
        actual = reference.run_layer(layer, stream_steps(inputs, scale)) * scale
        layers.append({"node": block.name, "decibels": quality.signal_to_noise(expected, actual)})
    return layers


def _place(model: ir.Model, graph: GraphModel) -> int:
    """The index of the design's result among the model's outputs; 0 if it is none of these."""
    outputs = list(model.graph.outputs)
    return outputs.index(graph.result) if graph.result in outputs else 0


def _integers(plan: ModelPlan, images: Array) -> Array:
    """The outputs of the integers for images [B, ...], as floats [B, rows, classes]."""
    rows = [reference.run(plan, plan.input_steps(image)).output for image in images]
    return np.stack(rows) * np.float32(plan.output_scale)


def _kernels(design: ModelDesign) -> dict[str, Any]:
    """The numbers of the design that ``moec inspect`` shows."""
    experts, attention = design.experts, design.attention
    return {
        "lanes": experts.lanes_in,
        "attention_lanes": None if attention is None else attention.lanes,
        "hidden_tile": experts.hidden_tile,
        "router_lanes": experts.router_lanes,
        "masters": [experts.masters_up, experts.masters_down],
    }
