"""FPGA projects of models after passes that round, remove or share experts, and the models that are refused."""

from __future__ import annotations

import importlib.util
import pathlib
import shutil

import numpy as np
import onnx_ir as ir
import pytest

from moec.common.errors import MoecError, UnsupportedError
from moec.compiling import compiler
from moec.ir import interpreter
from moec.ir.dialect import ExpertsSpec
from moec.ir.expert_weights import ExpertWeights
from moec.passes import pipeline
from moec.passes.framework.base import Report
from moec.simulators.hls.simulator import simulate_functionally
from moec.targets import get_all
from moec.targets.base import Project
from moec.targets.hls.graph.calibrate import run_with
from moec.targets.hls.moe import quality
from moec.targets.hls.moe.blocks import find_blocks
from moec.targets.hls.moe.stored_steps import stored_steps
from moec.targets.hls.options import HlsOptions
from moec.tools.profiling import profile as measure

from ...passes.stored_weights import experts_model, last_moec_node
from ...products import thinned
from .graphs import D, E, GraphBuilder

DIGITS = pathlib.Path(__file__).parents[3] / "examples" / "digits"
CALIBRATION = dict(np.load(DIGITS / "calibration.npz"))
SWIGLU = ExpertsSpec("silu", "gate_up")


@pytest.fixture(scope="module")
def profile(tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("profile") / "digits.moeprof"
    measure(DIGITS / "model.onnx", [DIGITS / "calibration.npz"], path, formats="int8")
    return path


def after(passes: str) -> ir.Model:
    model = compiler.import_model(DIGITS / "model.onnx")
    pipeline.run(model, pipeline.parse(f"O2,{passes}"), Report())
    return model


def projects(model: ir.Model, inputs: dict[str, np.ndarray]) -> list[Project]:
    (target,) = get_all("hls:zcu102", HlsOptions(inputs, max_tokens=16))
    return list(target.compile(model).projects)


FEWER = [
    pytest.param("prune-experts{{keep=5,profile={}}}", (5, 24), id="pruned"),
    pytest.param("merge-experts{{keep=5,profile={}}}", (5, 24), id="merged"),
    pytest.param("prune-hidden-units{{keep=0.5,multiple=8,profile={}}}", (8, 16), id="fewer hidden units"),
    pytest.param(
        "prune-experts{{keep=5,profile={0}}},quantize-experts{{format=int4,group=32,method=gptq,profile={0}}}",
        (5, 24),
        id="pruned, then int4",
    ),
    pytest.param(
        "quantize-experts{{format=int4,group=32,experts=0-3}},quantize-experts{{format=int8,experts=4-7}}",
        (8, 24),
        id="formats by expert",
    ),
]


@pytest.mark.nightly
@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
@pytest.mark.skipif(importlib.util.find_spec("hls4ml") is None, reason="hls4ml is not installed")
@thinned("passes, sizes", FEWER[::-1], 9)
def test_projects_compute_what_the_interpreter_does(passes, sizes, profile):
    """C simulation equals the integers bit for bit, and these are near the interpreter's results."""
    model = after(passes.format(profile))
    (block,) = blocks = find_blocks(model)
    assert (block.numbers.count, block.numbers.hidden) == sizes
    expected = interpreter.run(model, CALIBRATION)
    in_floats = run_with(model, blocks, CALIBRATION, lambda _index, tokens: block.numbers.run(tokens).output)
    noise = quality.signal_to_noise(expected["logits"], in_floats["logits"])
    assert noise is None or noise > 35  # next to int8 weights the interpreter rounds activations, too
    (project,) = projects(model, CALIBRATION)
    assert project.report["model_outputs"]["logits"]["decibels"] > 24
    assert project.report["quality"]["decibels"]["results"] > 38  # of what was rounded already nothing is rounded again
    assert "PASS: 16 tokens" in simulate_functionally(project.files)


def two_layers() -> ir.Model:
    graph = GraphBuilder()
    rows = graph.rows(graph.x)
    first = graph.moe(rows, graph.dense(rows, E), SWIGLU)
    return graph.model(graph.like_x(graph.moe(first, graph.dense(first, E), SWIGLU)))


def test_layers_may_have_different_numbers_of_experts():
    model = two_layers()
    pipeline.run(model, pipeline.parse("prune-experts{keep=2,method=random,layers=1}"), Report())
    x = {"x": np.random.default_rng(1).normal(0, 1, (2, 8, D)).astype(np.float32)}
    blocks = find_blocks(model)
    assert [block.numbers.count for block in blocks] == [E, 2]
    actual = run_with(model, blocks, x, lambda index, tokens: blocks[index].numbers.run(tokens).output)
    np.testing.assert_allclose(*actual.values(), *interpreter.run(model, x).values(), rtol=1e-4, atol=1e-4)
    assert [len(project.report["exploration"]["loads"]) for project in projects(model, x)] == [E, 2]


@pytest.mark.parametrize("name, group, bits", [("int4", 32, 4), ("int4", 64, 4), ("iq4", 64, 8)])
def test_formats_are_taken_as_they_are_stored(name, group, bits):
    model = experts_model(SWIGLU)
    pipeline.run(model, pipeline.parse(f"quantize-experts{{format={name},group={group}}}"), Report())
    weights = ExpertWeights(last_moec_node(model))
    stored = stored_steps(weights)
    assert stored is not None
    assert (stored.bits, stored.group, stored.whole) == (bits, group, True)
    for part in weights.parts:
        for expert in range(weights.experts):
            decoded = weights.decoded(part, expert).T
            steps = np.repeat(stored.of[part][expert], group, axis=1)[:, : decoded.shape[1]]
            np.testing.assert_allclose(np.round(decoded / steps) * steps, decoded, rtol=1e-6)


def test_channels_with_steps_below_zero_become_groups():
    """Negative scales need groups, since multipliers of groups are signed and those of channels are not."""
    model = experts_model(SWIGLU)
    pipeline.run(model, pipeline.parse("quantize-experts{format=int4,group=0}"), Report())
    stored = stored_steps(ExpertWeights(last_moec_node(model)))
    assert stored is not None
    assert (stored.bits, stored.group) == (4, 128)
    assert min(steps.min() for steps in stored.of.values()) < 0


def test_groups_of_different_sizes_become_the_smaller():
    model = experts_model(SWIGLU)
    formats = "format=int4,group=64,experts=0-1", "format=int4,group=32,experts=2", "format=int8,experts=3-4"
    passes = ",".join(f"quantize-experts{{{one}}}" for one in formats)
    pipeline.run(model, pipeline.parse(passes), Report())
    stored = stored_steps(ExpertWeights(last_moec_node(model)))
    assert stored is not None
    assert (stored.bits, stored.group, stored.whole) == (8, 32, False)
    up = stored.of["up"]
    assert not up[5].any() and up[:5].any(axis=(1, 2)).all()
    np.testing.assert_array_equal(up[:2, :, 0::2], up[:2, :, 1::2])
    assert (up[2, :, 0::2] != up[2, :, 1::2]).any()
    np.testing.assert_array_equal(up[3], np.repeat(up[3, :, :1], 4, axis=1))


@pytest.mark.parametrize(
    "format_",
    ["format=int3,group=32", "format=int2,group=32", "format=int4,group=32,zero_points=true", "format=fp8",
     "format=mxfp4"],
)  # fmt: skip
def test_other_formats_are_refused(format_):
    with pytest.raises(
        UnsupportedError, match=r"experts: the up weights of expert 2 are .*; expected floats, int8, iq4 or int4"
    ) as error:
        find_blocks(after(f"quantize-experts{{{format_},experts=2-4}}"))
    assert "\n" not in str(error.value)


def test_a_skipped_expert_is_refused(profile):
    with pytest.raises(MoecError, match="thresholds and capacities of a router have no template"):
        projects(after(f"skip-experts{{keep=0.8,profile={profile}}}"), CALIBRATION)
