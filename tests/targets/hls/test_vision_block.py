"""A transformer block from ONNX to two projects that exchange tokens through memory: ``examples/vision_block``."""

from __future__ import annotations

import pathlib
import runpy
import types
from typing import Any

import onnx
import pytest

import moec
from moec.compiling import compiler
from moec.passes import pipeline
from moec.passes.framework.base import Report
from moec.simulators.hls.simulator import simulate_timed
from moec.targets.hls.attention import reference as attention_reference
from moec.targets.hls.attention.graph import find_attention
from moec.targets.hls.attention.quantize import quantize_attention
from moec.targets.hls.design.attention import AttentionDesign
from moec.targets.hls.graph.calibrate import run_floats
from moec.targets.hls.graph.stream_scales import StreamPart, shared_scales
from moec.targets.hls.model.design import ModelDesign
from moec.targets.hls.model.plan import block_plan
from moec.targets.hls.model.project import model_files
from moec.targets.hls.moe import reference
from moec.targets.hls.moe.blocks import find_blocks
from moec.targets.hls.moe.quality import signal_to_noise
from moec.targets.hls.moe.quantize import quantize
from moec.targets.hls.options import HlsOptions

from .layers import DEVICE, project

EXPORT = pathlib.Path(__file__).parents[3] / "examples" / "vision_block" / "export.py"


@pytest.fixture(scope="module")
def export():
    return types.SimpleNamespace(**runpy.run_path(str(EXPORT)))


def small(export):
    return export.Sizes(tokens=9, width=32, heads=2, hidden=48, experts=4, slots=2)


def chain(export, sizes, folder, attention_design, moe_design):
    """The files of both projects, the second of which reads the first one's output, and the model's results."""
    path = folder / "block.onnx"
    onnx.save(export.build(sizes), path)
    model = compiler.import_model(path)
    pipeline.run(model, pipeline.parse("O2"), Report())
    (attention,), refused = find_attention(model)
    (moe,) = find_blocks(model)
    assert refused == []
    assert attention.output is moe.tokens
    x = export.sample(sizes)
    floats = run_floats(model, [attention, moe], {"x": x})
    parts = [
        StreamPart(first.tokens, first.output, first.numbers.needed_scale(tokens))
        for first, tokens in zip((attention, moe), floats.tokens, strict=True)
    ]
    scale, same = shared_scales(parts)
    assert scale == same
    first = quantize_attention(attention.numbers, floats.tokens[0], most_tokens=sizes.tokens, stream_scale=scale)
    second = quantize(moe.numbers, floats.tokens[1], most_tokens=sizes.tokens, stream_scale=scale)
    steps = first.quantized(x[0])
    stream = attention_reference.run(first, steps).output
    results = reference.run(second, stream).output * second.output_scale
    design = ModelDesign(None, AttentionDesign(first.shape, **attention_design))
    return (
        model_files(design, block_plan("attention", first), steps, device=DEVICE, clock=300),
        project(second, stream, **moe_design),
        floats.outputs["y"][0],
        results,
    )


@pytest.mark.nightly
def test_memory_chains_both_projects(export, tmp_path):
    lanes = {"lanes_in": 8, "lanes_out": 8, "hidden_tile": 16}
    attention, moe, expected, actual = chain(export, small(export), tmp_path, {"lanes": 8}, lanes)
    assert moe["data/stream.bin"].startswith(attention["data/outputs.bin"])
    for files in (attention, moe):
        results = [simulate_timed(files, fifo_depths=depth) for depth in (None, 1)]
        assert all("PASS: 9 tokens" in result.output for result in results)
    assert signal_to_noise(expected, actual) > 20
    assert attention["data/stream.bin"].startswith(host_of(attention)["tokens_in"](export.sample(small(export))[0]))
    assert signal_to_noise(expected, host_of(moe)["tokens_out"](moe["data/outputs.bin"], 9)) > 20


def host_of(files: dict[str, bytes]) -> dict[str, Any]:
    """The functions of a project's ``host.py``."""
    names: dict[str, Any] = {}
    exec(files["host.py"], names)
    return names


@pytest.mark.nightly
def test_a_block_of_the_size_of_m3vit(export, tmp_path):
    attention, moe, expected, actual = chain(export, export.Sizes(), tmp_path, {"norm_lanes": 16}, {"router_lanes": 16})
    assert moe["data/stream.bin"].startswith(attention["data/outputs.bin"])
    results = [simulate_timed(files, memory_latency=0) for files in (attention, moe)]
    narrow = [simulate_timed(files, fifo_depths=1) for files in (attention, moe)]
    assert all("PASS: 197 tokens" in result.output for result in (*results, *narrow))
    bounds = [197 * 3 * 192 * 192 // 16**2, 197 * 4 * 192 * 768 // 16**2]
    assert [bound / result.cycles > 0.95 for bound, result in zip(bounds, results, strict=True)] == [True, True]
    assert signal_to_noise(expected, actual) > 20


def test_the_target_makes_both_projects(export, tmp_path):
    sizes = small(export)
    onnx.save(export.build(sizes), tmp_path / "block.onnx")
    options = HlsOptions({"x": export.sample(sizes)}, by_block=True)
    artifact = moec.compile(tmp_path / "block.onnx", target="hls:zcu102", target_options=options).artifact
    moe, attention = artifact.manifest.projects
    assert [one.name for one in (moe, attention)] == ["moe_0", "attention_0"]
    assert moe.report["outside"] == []
    assert attention.report["quality"]["decibels"]["attended"] > 30
    scales = [line for one in (moe, attention) for line in scale_lines(artifact.project_files(one)["host.py"].decode())]
    assert len(set(scales)) == 1


def scale_lines(host: str) -> list[str]:
    return [line for line in host.splitlines() if line.startswith("INPUT_SCALE")]


def test_an_attention_that_does_not_fit_stays_outside(export, tmp_path):
    """The MoE block still becomes a project."""
    sizes = small(export)
    model = export.build(sizes)
    attention = next(node for node in model.graph.node if node.op_type == "Attention")
    attention.attribute.append(onnx.helper.make_attribute("softcap", 20.0))
    onnx.save(model, tmp_path / "block.onnx")
    options = HlsOptions({"x": export.sample(sizes)})
    artifact = moec.compile(tmp_path / "block.onnx", target="hls:zcu102", target_options=options).artifact
    (project,) = artifact.manifest.projects
    assert project.name == "moe_0"
    (reason,) = project.report["outside"]
    assert "softcap is 20" in reason
    assert "softcap is 20" in project.report["by_block"]
