"""Whole models in integers: they are near the floats, or refused if their layers cannot share arrays."""

from __future__ import annotations

import ast
import dataclasses
import pathlib

import numpy as np
import onnx_ir as ir
import pytest

from moec.common.errors import InputError, UnsupportedError
from moec.compiling import compiler
from moec.ir import interpreter
from moec.passes import pipeline
from moec.passes.framework.base import Report
from moec.targets.hls.attention.quantize import QuantizedAttention
from moec.targets.hls.graph.calibrate import evaluate
from moec.targets.hls.model import reference
from moec.targets.hls.model.quantize import quantize_model
from moec.targets.hls.moe.quality import signal_to_noise
from moec.targets.hls.moe.quantize import QuantizedBlock
from moec.targets.hls.options import HlsOptions
from moec.targets.hls.target import HlsTarget

from . import vision_models as vision
from .graphs import D, GraphBuilder


def model_of(head=vision.first_token, *, tokens=1, kind=ir.DataType.FLOAT):
    graph = GraphBuilder()
    vision.images(graph, kind=kind)
    pixels = graph.add("Cast", graph.x, to=ir.DataType.FLOAT) if kind != ir.DataType.FLOAT else graph.x
    scaled = graph.add("Mul", pixels, graph.constant(np.float32(1 / 128)))
    patches = vision.convolution(graph, scaled)
    stream = vision.with_class(graph, patches, tokens) if tokens else patches
    return vision.transformer(graph, vision.placed(graph, stream, 4 + tokens), head)


def images(count, kind=np.float32):
    pixels = np.random.default_rng(0).integers(0, 256, (count, 1, 4, 4)).astype(kind)
    pixels[0].flat[:2] = 0, 255
    return pixels


def integers(plan, given):
    rows = [reference.run(plan, plan.input_steps(image)).output for image in given]
    return np.stack(rows) * plan.output_scale


@pytest.mark.parametrize(
    ("head", "tokens"),
    [(vision.first_token, 1), (vision.mean_token, 0), (vision.mean_token, 1), (vision.all_tokens, 0)],
)
def test_integers_are_near_the_floats(head, tokens):
    model = model_of(head, tokens=tokens)
    inputs = images(40)
    plan = quantize_model(model, vision.found(model), {"images": inputs}, name="vision")
    (expected,) = interpreter.run(model, {"images": inputs}).values()
    outputs = integers(plan, inputs)
    assert (plan.output_rows, plan.classes) == outputs.shape[1:]
    assert (signal_to_noise(expected, outputs.reshape(expected.shape)) or 0) > 20
    assert plan.shifts.up is not None


def test_bytes_become_steps_without_loss():
    model = model_of(kind=ir.DataType.UINT8)
    plan = quantize_model(model, vision.found(model), {"images": images(8, np.uint8)}, name="vision")
    assert (plan.patches.scale, plan.patches.offset) == (1, 128)
    steps = plan.input_steps(np.arange(16, dtype=np.uint8).reshape(1, 4, 4) * 17)
    assert steps[1].tolist() == [-128, -111, -60, -43]
    assert not steps[0].any()


def many_classes(graph, tokens):
    return graph.dense(graph.add("Gather", tokens, graph.constant(np.array(0)), axis=1), 2 * D + 3)


def test_more_classes_than_channels_are_several_heads():
    model = model_of(many_classes)
    inputs = images(20)
    plan = quantize_model(model, vision.found(model), {"images": inputs}, name="vision")
    assert [head.outputs for head in plan.heads] == [D, D, 3]
    assert (plan.classes, len({head.output_scale for head in plan.heads})) == (2 * D + 3, 1)
    (expected,) = interpreter.run(model, {"images": inputs}).values()
    assert (signal_to_noise(expected, integers(plan, inputs).reshape(expected.shape)) or 0) > 20


@pytest.mark.parametrize("constant", ["down", "embedding"])
def test_weights_of_zero_cost_other_layers_no_bits(constant):
    """Weights of zero are those of an untrained projection, or of an embedding that ignores images."""
    model, inputs = model_of(), images(20)
    (zeroed,) = (
        [node.inputs[3] for node in model.graph if node.op_type == "MoE"]
        if constant == "down"
        else [node.inputs[1] for node in model.graph if node.op_type == "Conv"]
    )
    zeroed.const_value = ir.tensor(np.zeros_like(zeroed.const_value.numpy()))
    plan = quantize_model(model, vision.found(model), {"images": inputs}, name="vision")
    (expected,) = interpreter.run(model, {"images": inputs}).values()
    assert (signal_to_noise(expected, integers(plan, inputs).reshape(expected.shape)) or 0) > 20


def routed_twice(factor):
    """A model with two layers of experts, in which the logits of the first are multiplied by ``factor``."""
    graph = GraphBuilder()
    vision.images(graph)
    tokens = vision.attention(graph, vision.convolution(graph, graph.x))
    stream = vision.experts(graph, vision.experts(graph, tokens))
    model = vision.finished(graph, vision.mean_token(graph, vision.normal(graph, stream)))
    scaled_inputs(next(node.inputs[1] for node in model.graph if node.op_type == "MoE"), factor)
    return model


def scaled_inputs(value, factor):
    """Multiply the constants of the product and the sum that make a value by ``factor``."""
    sums = value.producer()
    (product,) = (operand.producer() for operand in sums.inputs if operand.producer() is not None)
    for constant in (*sums.inputs, *product.inputs):
        if constant.const_value is not None:
            constant.const_value = ir.tensor(constant.const_value.numpy() * np.float32(factor))


def test_routers_and_queries_of_zero_cost_other_layers_no_bits():
    attending = model_of()
    scaled_inputs(next(node.inputs[0] for node in attending.graph if node.op_type == "Attention"), 0)
    for model in (routed_twice(0), attending):
        plan = quantize_model(model, vision.found(model), {"images": images(20)}, name="vision")
        for kind in (QuantizedBlock, QuantizedAttention):
            *_, last = (block.score for block in plan.blocks if isinstance(block, kind))
            assert last.values[0] >> 14


def test_scores_of_layers_that_differ_too_much_are_refused():
    model = routed_twice(3000)
    with pytest.raises(UnsupportedError, match="one shift leaves a multiplier of 5 bits"):
        quantize_model(model, vision.found(model), {"images": images(20)}, name="vision")


def test_what_is_in_the_middle_of_all_pixels_does_not_saturate():
    """Images are dark except for one pixel. The product of a patch of medium pixels, which the offset adds, is far
    larger than any product of these images."""
    graph = GraphBuilder()
    vision.images(graph)
    weights = graph.constant(np.abs(graph.random.normal(0, 0.5, (D, 1, 4, 4))).astype(np.float32))
    patch = graph.add("Reshape", graph.add("Conv", graph.x, weights), graph.constant(np.array([0, 1, D])))
    model = vision.transformer(graph, vision.placed(graph, patch, 1), vision.mean_token)
    inputs = np.zeros((16, 1, 4, 4), np.float32)
    inputs.reshape(16, 16)[np.arange(16), np.arange(16)] = 255
    plan = quantize_model(model, vision.found(model), {"images": inputs}, name="vision")
    (expected,) = interpreter.run(model, {"images": inputs}).values()
    assert (signal_to_noise(expected, integers(plan, inputs).reshape(expected.shape)) or 0) > 25


def test_weights_are_rounded_around_the_mean_of_all_images():
    """Dark pixels are far from the middle of the range, so the rounding errors of their weights add up."""
    model = model_of()
    (weights,) = (node.inputs[1] for node in model.graph if node.op_type == "Conv")
    weights.const_value = ir.tensor(100 * np.abs(weights.const_value.numpy()))
    calibration, inputs = np.zeros((2, 16, 1, 4, 4), np.float32)
    calibration.reshape(16, 16)[np.arange(16), np.arange(16)] = 255
    inputs.reshape(16, 16)[np.arange(16), np.arange(16)] = 200
    plan = quantize_model(model, vision.found(model), {"images": calibration}, name="vision")
    (expected,) = interpreter.run(model, {"images": inputs}).values()
    assert (signal_to_noise(expected, integers(plan, inputs).reshape(expected.shape)) or 0) > 30


@pytest.mark.parametrize(("number", "reason"), [(np.nan, "block: .*not finite"), (1e30, "no 16-bit multiplier")])
def test_numbers_that_no_integer_says_are_refused(number, reason):
    model = model_of()
    (down,) = [node.inputs[4] for node in model.graph if node.op_type == "MoE"]
    weights = down.const_value.numpy().copy()
    weights[0, 0] = number
    down.const_value = ir.tensor(weights)
    with pytest.raises(UnsupportedError, match=reason):
        quantize_model(model, vision.found(model), {"images": images(4)}, name="vision")


def test_names_of_graphs_stay_in_comments():
    model = model_of()
    model.graph.name = 'x"""\nraise SystemExit\n#include "/etc/passwd'
    (project,) = HlsTarget.create("hls:zcu102", HlsOptions({"images": images(4)})).compile(model).projects
    ast.parse(project.files["host.py"])
    for content in project.files.values():
        assert b"\nraise SystemExit" not in content


def test_as_many_images_as_a_graph_takes_may_be_more_than_are_compared():
    graph = GraphBuilder()
    vision.images(graph, batch=65)
    tokens = vision.placed(graph, vision.convolution(graph, graph.x), 4)
    model = vision.transformer(graph, tokens, vision.mean_token)
    (project,) = HlsTarget.create("hls:zcu102", HlsOptions({"images": images(65)})).compile(model).projects
    assert project.report["quality"]["tokens"] == 64 * 4


def test_calibration_without_an_image_is_refused():
    model = model_of()
    with pytest.raises(InputError, match="'images' has no image"):
        quantize_model(model, vision.found(model), {"images": images(1)[:0]}, name="vision")


def test_gated_layers_beside_others_lose_nothing():
    model = model_of()
    result = vision.found(model)
    dense = result.blocks[1]
    gated = dataclasses.replace(
        dense,
        numbers=dataclasses.replace(
            dense.numbers,
            gate=dense.numbers.up,
            gate_bias=dense.numbers.up_bias,
            experts=dataclasses.replace(dense.numbers.experts, gate_layout="separate"),
        ),
    )
    other = dataclasses.replace(result, blocks=(result.blocks[0], gated, *result.blocks[2:]))
    plan = quantize_model(model, other, {"images": images(4)}, name="vision")
    assert all(block.shape.gated for block in plan.blocks if isinstance(block, QuantizedBlock))


def test_layers_that_need_another_array_are_refused():
    model = model_of()
    result = vision.found(model)
    *others, experts = result.blocks
    unnormalised = dataclasses.replace(experts.numbers.routing, score="sigmoid")
    sigmoid = dataclasses.replace(experts, numbers=dataclasses.replace(experts.numbers, routing=unnormalised))
    both = dataclasses.replace(result, blocks=(*others, experts, sigmoid))
    with pytest.raises(
        UnsupportedError,
        match=r"scoring is sigmoid and that of .* softmax; expected the same, because layers of one design",
    ):
        quantize_model(model, both, {"images": images(4)}, name="vision")
    with pytest.raises(UnsupportedError, match="experts have int4 weights and linear layers int8"):
        quantize_model(model, result, {"images": images(4)}, name="vision", weight_bits=4)


@pytest.mark.nightly
def test_the_example_reads_digits_in_integers_as_in_floats():
    """The counts are those of ``examples/vision_moe/README.md``, up to one image, since libraries sum in other
    orders."""
    folder = pathlib.Path(__file__).parents[3] / "examples" / "vision_moe"
    model = compiler.import_model(folder / "model.onnx")
    pipeline.run(model, pipeline.parse("O2"), Report())
    calibration, inputs, labels = (
        np.load(folder / f"{name}.npz")[key]
        for name, key in (("calibration", "images"), ("inputs", "images"), ("labels", "labels"))
    )
    graph = vision.found(model)
    plan = quantize_model(model, graph, {"images": calibration}, name="vision")
    (floats,) = evaluate(model, {graph.source: inputs}, [graph.result])
    result = integers(plan, inputs)[:, 0]
    right = [int((logits.argmax(axis=1) == labels).sum()) for logits in (floats, result)]
    np.testing.assert_allclose(right, [446, 445], atol=1)
    by_image = [signal_to_noise(*pair) or 99 for pair in zip(floats, result, strict=True)]
    assert np.median(by_image) > 36
