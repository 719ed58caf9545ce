"""Whole models in one design: generated C++ against the integer reference of all layers."""

from __future__ import annotations

import dataclasses
import importlib.util
import pathlib
import runpy
import shutil
import sys
import tempfile
import types

import numpy as np
import pytest

import moec
from moec.common.errors import UnsupportedError
from moec.simulators.hls.simulate import simulate
from moec.simulators.hls.simulator import SimulationError, simulate_functionally, simulate_timed
from moec.targets.hls.attention.quantize import quantize_attention
from moec.targets.hls.design.numbers import MOST_STAGES, USUAL_STAGES
from moec.targets.hls.hardware.parts import find_part
from moec.targets.hls.model import reference
from moec.targets.hls.model.design import model_design
from moec.targets.hls.model.estimate import choose_model, estimate_model, loads_of
from moec.targets.hls.model.masters import with_masters
from moec.targets.hls.model.project import model_files
from moec.targets.hls.model.quantize import planned
from moec.targets.hls.moe.exploration import Constraints
from moec.targets.hls.moe.quantize import QuantizedBlock, quantize
from moec.targets.hls.options import HlsOptions
from moec.targets.hls.tables import simulation_tables

from . import fake_xrt, model_layers
from .lint.linter import lint
from .test_estimate import EDGE_LOADS

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None or importlib.util.find_spec("hls4ml") is None,
    reason="g++ or hls4ml is not installed",
)
TOP = "src/model.cpp"
EXAMPLE = pathlib.Path(__file__).parents[3] / "examples" / "vision_moe"


def image_of(plan):
    return np.random.default_rng(0).uniform(-1, 1, plan.patches.shape)


def files_of(plan, lanes=8, attention_lanes=8, tile=16):
    """A project whose testbench runs one image."""
    design = model_design(plan, lanes, tile, 4, attention_lanes)
    return model_files(design, plan, plan.input_steps(image_of(plan)), device="xczu9eg-ffvb1156-2-e", clock=300)


def part_of(projection, *taken):
    """A projection with only some of its experts, or of their outputs."""
    multipliers = dataclasses.replace(projection.multipliers, values=projection.multipliers.values[taken])
    weights, biases = projection.weights[taken], projection.biases[taken]
    return dataclasses.replace(projection, weights=weights, biases=biases, multipliers=multipliers)


def with_first_experts(block, count):
    """The layer with only its first ``count`` experts, so that layers of a model differ in their number."""
    parts = {name: part_of(getattr(block, name), slice(count)) for name in ("up", "down")}
    parts |= {name: getattr(block, name)[:count] for name in ("router", "router_bias")}
    return dataclasses.replace(block, shape=dataclasses.replace(block.shape, experts=count, slots=1), **parts)


@pytest.fixture(scope="module")
def plan():
    """A plan with corner cases: patches are longer than tokens, tiles extend beyond a token, layers differ in the
    numbers of experts and of those that a token chooses, and two heads compute the logits from the mean of all
    tokens."""
    base = model_layers.plan(pool="mean", tokens=40, width=24, pixels=40, classes=24)
    more = with_first_experts(base.blocks[-1], 3)
    (head,) = base.heads
    last = dataclasses.replace(head, down=part_of(head.down, slice(None), slice(10)))
    return dataclasses.replace(base, blocks=(*base.blocks, more), heads=(head, last))


@pytest.fixture(scope="module")
def files(plan):
    return files_of(plan)


def expect_host_of_decoder(files, ids, plan):
    """Check that host.py writes the same bytes for each call as the testbench's files hold."""
    with tempfile.TemporaryDirectory() as name:
        for path, content in files.items():
            if path.startswith("data/") or path == "host.py":
                target = pathlib.Path(name, path)
                target.parent.mkdir(exist_ok=True)
                target.write_bytes(content)
        host = types.SimpleNamespace(**runpy.run_path(str(pathlib.Path(name, "host.py"))))
        calls, size = [(8, 0, 4), (1, 8, 1), (1, 9, 1), (1, 10, 1), (1, 11, 1)], host.LAYOUT["size"] * host.BEAT
        assert b"".join(host.records(*call).tobytes() for call in calls) == files["data/layers.bin"]
        assert [host.rows_of_last(count) for count, *_ in calls] == [rows for *_, rows in calls]
        expected = reference.run(plan, plan.token_rows[ids]).output
        for place, (count, past, rows) in enumerate(calls):
            of_call = ids[past : past + count]
            data = host.stream_in(of_call)
            assert data == host.stream_in(plan.token_rows[of_call] * plan.stream_scale)
            assert files["data/stream.bin"][place * size :].startswith(data)
            assert np.array_equal(host.expected_outputs()[place], expected[past + count - rows : past + count])
        sequence = host.Sequence()
        for count, past, _ in calls:
            assert sequence.start_of(count) == past
            sequence.add(count)
        with pytest.raises(ValueError, match="1 tokens behind 12; expected up to 8, 12 in all"):
            sequence.start_of(1)


@needs_compiler
@pytest.mark.nightly
def test_a_decoder_in_calls_of_a_prompt_and_single_tokens_equals_the_reference():
    """Calls have 8 tokens and then one each, and need what earlier calls left in the caches of two layers. Two heads
    compute 40 logits of the last token and of the three before it, since every fourth row of 48 bytes begins a beat."""
    plan = model_layers.decoder_plan(classes=40)
    ids = np.random.default_rng(0).integers(0, 40, 12)
    design = model_design(plan, 8, 16, 4, 8)
    files = model_files(design, plan, plan.token_rows[ids], device="xczu9eg-ffvb1156-2-e", clock=300)
    assert lint(files) == []
    for settings in ({}, {"pipeline_depth": MOST_STAGES}):
        timed = simulate_timed(files, **settings)
        assert "PASS: 6 layers" in timed.output
    assert len(timed.later_cycles) == 5 * (1 + 6) - 1
    assert f"label {reference.run(plan, plan.token_rows[ids]).output[-1].argmax()}," in timed.output
    expect_host_of_decoder(files, ids, plan)
    layers = len(plan.layers) * 128
    assert len(files["data/layers.bin"]) == 5 * layers
    broken = {**files, "data/layers.bin": files["data/layers.bin"][:layers] + files["data/layers.bin"][:layers] * 4}
    with pytest.raises(SimulationError):
        simulate_timed(broken)


@needs_compiler
@pytest.mark.nightly
def test_all_layers_in_one_design_equal_the_reference(files):
    assert lint(files) == []
    timed = simulate_timed(files)
    assert "PASS: 8 layers" in timed.output
    assert [region.name for region in timed.regions if region.name != "read_layer"] == [
        *("experts_layer", "attention_layer") * 2,
        *("experts_layer",) * 4,
    ]
    assert timed.cycles == sum(region.cycles for region in timed.regions)
    assert simulate_timed(files, fifo_depths=1).cycles > timed.cycles
    deep = simulate_timed(files, pipeline_depth=MOST_STAGES)
    assert "PASS" in deep.output and deep.cycles > timed.cycles


def test_the_host_program_packs_images_and_reads_outputs(plan, files, tmp_path, monkeypatch, capsys):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    host = runpy.run_path(str(tmp_path / "host.py"))
    image = image_of(plan)
    inputs = host["inputs_of"](image)
    assert files["data/stream.bin"].startswith(inputs)
    expected = reference.run(plan, plan.input_steps(image)).output
    np.testing.assert_array_equal(host["expected_outputs"](), expected)
    with pytest.raises(ValueError, match="expected"):
        host["inputs_of"](image[:-1])
    places, outputs = host["LAYOUT"]["outputs"], files["data/outputs.bin"]
    results = outputs[-(len(files["data/stream.bin"]) - 64 * places[0]) :]
    for state, group, said in (
        ("completed", lambda _: 1, "PASS: 0 of 34 outputs differ"),
        ("abort", lambda _: 1, "ended in the state abort"),
        ("completed", int, "are at different memories"),
    ):
        monkeypatch.setitem(sys.modules, "pyxrt", board(state, group, 64 * places[0], results))
        try:
            assert host["main"](["check", "model.xclbin"]) == 0
            assert said in capsys.readouterr().out
        except RuntimeError as error:
            assert said in str(error)


def board(state, group, place, results):
    """A board whose kernel writes ``results`` at a place of the streams' memory."""

    def run(*arguments):
        assert arguments[4] is arguments[5] is arguments[9]
        arguments[9].write(results, place)
        return state

    return fake_xrt.module(run, group)


@pytest.mark.parametrize(
    ("before", "after", "rule"),
    [
        ("experts_layer(layer.tokens", "layers[0]; experts_layer(layer.tokens", "regions-in-turn"),
        ("layer.epsilon, norm_parameters, stream_in", "layer.epsilon, stream_in, norm_parameters", "regions-in-turn"),
        ("#pragma HLS INLINE off\n", "", "regions-in-turn"),
        ("port=residual bundle=gmem_residual", "port=residual bundle=gmem_tokens", "one-master-per-direction"),
        ("#pragma HLS INTERFACE s_axilite port=residual\n", "", "complete-interfaces"),
    ],
)
def test_the_linter_looks_at_regions_and_the_function_around_them(files, before, after, rule):
    text = files[TOP].decode()
    assert before in text
    assert rule in {finding.rule for finding in lint({**files, TOP: text.replace(before, after).encode()})}


def test_layers_that_differ_in_wires_are_refused():
    plan = model_layers.plan()
    *others, last = plan.blocks
    gated = dataclasses.replace(last, shape=dataclasses.replace(last.shape, gated=True))
    int4 = tuple(
        dataclasses.replace(block, shape=dataclasses.replace(block.shape, weight_bits=4))
        if isinstance(block, QuantizedBlock)
        else block
        for block in plan.blocks
    )
    with pytest.raises(UnsupportedError, match="linear layers have int8 weights"):
        model_design(dataclasses.replace(plan, blocks=int4), 8, 16, 4)
    assert "pad tokens to 48 and 40 channels" in str(model_design(model_layers.plan(width=40), 16, 16, 4, 8).why_not())
    with pytest.raises(UnsupportedError, match="layers of experts differ in gated: False, True"):
        model_design(dataclasses.replace(plan, blocks=(*others, gated)), 8, 16, 4)


@needs_compiler
@pytest.mark.nightly
def test_layers_of_all_kinds_share_one_design():
    """The layers are gated int4 experts in groups with a bias of the choice, experts without any of that, and a dense
    layer."""
    plan = model_layers.plan(last=[model_layers.gated_block(32, group=32), model_layers.sigmoid_block(32)], tokens=9)
    shapes = [block.shape for block in plan.blocks if isinstance(block, QuantizedBlock)]
    assert len(shapes) == 3
    assert {(shape.gated, shape.group, shape.weight_bits, shape.biased_choice) for shape in shapes} == {
        (True, 32, 8, True)
    }
    files = files_of(plan, tile=32)
    assert "PASS: 7 layers" in simulate_functionally(files)
    assert "PASS: 7 layers" in simulate_timed(files, pipeline_depth=USUAL_STAGES).output


@needs_compiler
@pytest.mark.nightly
def test_linear_layers_need_room_for_the_tokens_in_a_pipeline(plan, files):
    """Linear layers pass hidden units straight on, so more tokens are in flight than in a layer with a first
    product."""
    depth = model_design(plan, 8, 16, 4).experts.items_down_depth
    with pytest.raises(SimulationError, match="in a circle: product_up -> product_down -> product_up"):
        simulate_timed(files, pipeline_depth=MOST_STAGES, fifo_depths={"items_down": depth - 3})


@pytest.mark.nightly
@needs_compiler
def test_c_simulation_equals_the_reference():
    """The model's head takes the first token, its tiles are whole, and its kernels have different lanes."""
    assert "PASS: 6 layers" in simulate_functionally(files_of(model_layers.plan(pixels=16), lanes=16))


@pytest.fixture(scope="module")
def trained():
    """The artifact of a trained model."""
    options = HlsOptions({"images": np.load(EXAMPLE / "inputs.npz")["images"][:64]})
    return moec.compile(EXAMPLE / "model.onnx", target="hls:zcu102", target_options=options).artifact


@needs_compiler
def test_from_onnx_to_a_label(trained):
    """The testbench of a trained model labels the first image correctly."""
    labels = np.load(EXAMPLE / "labels.npz")["labels"]
    (project,) = trained.manifest.projects
    assert project.report["model_outputs"]["logits"]["same_largest"] > 0.98
    (result,) = simulate(trained, pipeline_depth=USUAL_STAGES)
    assert f"PASS: 10 layers, label {labels[0]}, 0 differences" in result["output"]
    assert result["cycles"] == pytest.approx(result["estimated"], rel=0.1)
    tables = "".join(str(table) for table in simulation_tables([result]))
    assert "experts_layer.dispatch: busy" in tables


@needs_compiler
def test_a_wrong_number_of_a_layer_is_noticed(trained):
    """The message names the layer."""
    files = trained.project_files(trained.manifest.projects[0])
    outputs = bytearray(files["data/outputs.bin"])
    outputs[0] ^= 1
    with pytest.raises(SimulationError) as error:
        simulate_timed({**files, "data/outputs.bin": bytes(outputs)}, pipeline_depth=USUAL_STAGES)
    assert error.value.kind == "mismatch"
    assert "layer 0, row 0, channel 0" in error.value.details


@pytest.mark.nightly
@needs_compiler
def test_estimates_agree_with_the_simulation_of_large_layers():
    plan = model_layers.plan(tokens=129, width=192, hidden=768, pixels=768)
    steps, part = plan.input_steps(image_of(plan)), find_part("zcu102")
    design = model_design(plan, 16, 128, 4)
    estimated = estimate_model(design, plan, loads_of(plan, steps), part, 300)
    ports = estimated.ports
    files = model_files(design, plan, steps, device=part.device, clock=300)
    result = simulate_timed(files, memory_share=ports.share, total_share=ports.total_share, pipeline_depth=USUAL_STAGES)
    assert "PASS" in result.output
    assert result.cycles == pytest.approx(estimated.cycles.total, rel=0.02)


@pytest.mark.nightly
def test_latencies_of_m3vit_are_those_of_the_docs():
    """The table of docs/design/fpga.md holds these figures. Sizes are those of Edge-MoE's sources, and the loads of
    every layer those of random tokens."""
    plan = m3vit()
    loads = [EDGE_LOADS if len(layer) == 16 else layer for layer in loads_of(plan, plan.input_steps(image_of(plan)))]
    actual = {}
    for name in ("zcu104", "zcu102", "u55c"):
        part = find_part(name)
        chosen = choose_model(plan, loads, part, Constraints())
        design = with_masters(chosen, plan, loads, part, Constraints())
        experts, attention = design.design.experts, design.design.attention
        masters = (experts.masters_up, experts.masters_down)
        actual[name] = (experts.lanes_in, attention.lanes, experts.hidden_tile, masters, round(design.milliseconds, 1))
    assert actual == {
        "zcu104": (16, 16, 64, (1, 1), 6.4),
        "zcu102": (32, 16, 128, (1, 1), 5.2),
        "u55c": (32, 32, 128, (2, 2), 1.8),
    }


def m3vit():
    """A plan of M3ViT: 12 layers, whose feed-forward part alternates between a dense layer and 16 experts."""
    base = model_layers.plan(tokens=129, width=192, hidden=768, pixels=768)
    stream = np.random.default_rng(3).normal(0, 1, (3, 129, 192)).astype(np.float32)
    sizes = {"most_tokens": 129, "stream_scale": model_layers.STREAM_SCALE}
    attention = quantize_attention(model_layers.attention_block(192, 3), stream, **sizes)
    dense, experts = (
        quantize(block, stream.reshape(-1, 192), **sizes)
        for block in (model_layers.feed_forward(192, 768), model_layers.moe_block(192, 384, 16, 2))
    )
    blocks = [attention, dense, attention, experts] * 6
    return planned("m3vit", 129, model_layers.STREAM_SCALE, base.patches, base.embedding, blocks, base.heads)
