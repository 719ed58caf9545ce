"""Projects of whole models whose simulation matches, and errors for bad input."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
import pytest

import moec
from moec.common.errors import ArtifactError, MoecError, UnsupportedError
from moec.compiling import compiler
from moec.compiling.compile_options import CompileOptions
from moec.ir.text import parse_model
from moec.passes import pipeline
from moec.passes.framework.base import Report
from moec.simulators.hls.simulate import simulate
from moec.targets import get_all
from moec.targets.hls import target as hls_target
from moec.targets.hls.graph import calibrate, residuals
from moec.targets.hls.kind import HlsKind
from moec.targets.hls.moe import reference
from moec.targets.hls.moe.blocks import find_blocks
from moec.targets.hls.moe.exploration import Constraints
from moec.targets.hls.moe.quantize import quantize
from moec.targets.hls.moe_block import MOE
from moec.targets.hls.options import HlsOptions

DIGITS = pathlib.Path(__file__).parents[3] / "examples" / "digits"
OPTIONS = HlsOptions(dict(np.load(DIGITS / "calibration.npz")), max_tokens=32, constraints=Constraints(max_dsp=200))


@pytest.fixture(scope="module")
def projects():
    return moec.compile(DIGITS / "model.onnx", target="hls:zcu102", target_options=OPTIONS)


@pytest.fixture(scope="module")
def artifact(projects):
    return projects.artifact


@pytest.fixture
def model():
    graph = compiler.import_model(DIGITS / "model.onnx")
    pipeline.run(graph, pipeline.parse("O2"), Report())
    return graph


def test_the_project_of_a_model_simulates_right(artifact):
    (result,) = simulate(artifact)
    assert result["passed"]
    assert result["tokens"] == 32
    assert result["estimated"] == pytest.approx(result["cycles"], rel=0.25)  # loads of 32 tokens are not those of all


def test_projects_say_where_they_are_and_what_to_do(projects, tmp_path):
    (name,) = projects.names
    assert (projects.path / "projects" / name / "estimate.json").is_file()
    assert repr(projects).startswith(f"<CompiledProjects for hls:zcu102 at '{projects.path}': {name};")
    assert projects.report(name) == projects.describe()["projects"][0]["report"]
    with pytest.raises(MoecError, match=rf"has no project 'other'; its projects: {name}"):
        projects.report("other")
    with pytest.raises(MoecError, match=r"hls:zcu102, which do not run here; simulate them: moec simulate"):
        projects.run({})
    projects.save(tmp_path / "digits.zip")
    with pytest.raises(MoecError, match="holds projects for an FPGA and no program that runs here; simulate them"):
        moec.load(tmp_path / "digits.zip")


def test_projects_are_not_emulated():
    with pytest.raises(MoecError, match="'hls:zcu102' makes projects, which no device runs; compile without emulate"):
        moec.compile(DIGITS / "model.onnx", target="hls:zcu102", emulate=True)


def test_the_artifact_says_what_was_chosen(artifact):
    (project,) = artifact.manifest.projects
    chosen = [design for design in project.report["exploration"]["front"] if design["chosen"]]
    assert len(chosen) == 1
    assert chosen[0]["resources"]["dsp"] <= 200
    assert project.report["quality"]["decibels"]["output"] > 25
    expected = {"README.md", "Makefile", "host.py", "estimate.json", "src/model.cpp"}
    assert expected <= set(artifact.project_files(project))


def test_accuracy_is_within_half_a_point_of_floats(model):
    inputs, labels = dict(np.load(DIGITS / "inputs.npz")), np.load(DIGITS / "labels.npz")["y"]
    blocks = find_blocks(model)
    (tokens,) = calibrate.run_floats(model, blocks, OPTIONS.calibration).tokens
    block = quantize(blocks[0].numbers, tokens, most_tokens=32)

    def compute(_index, tokens):
        return reference.run(block, block.quantized(tokens)).output * block.output_scale

    floats = calibrate.run_floats(model, blocks, inputs).outputs["logits"]
    integers = calibrate.run_with(model, blocks, inputs, compute)["logits"]
    right = [float((answers.argmax(axis=1) == labels).mean()) for answers in (floats, integers)]
    assert right[0] > 0.95
    assert abs(right[0] - right[1]) <= 0.005


def refused(options: HlsOptions, target: str = "hls:zcu102", path: pathlib.Path = DIGITS / "model.onnx"):
    with pytest.raises(MoecError) as error:
        compiler.write(path, pathlib.Path("never.moec"), CompileOptions(target=target, target_options=options))
    assert not pathlib.Path("never.moec").exists()
    return str(error.value)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"calibration": None}, "--calibrate FILE.npz with x float32"),
        ({"max_tokens": None}, "--max-tokens"),
        (
            {"calibration": {"pixels": np.zeros((3, 64), np.float32)}},
            "calibration data has 'pixels'; expected inputs of the model: x",
        ),
        ({"calibration": {"x": np.zeros((0, 64), np.float32)}}, "calibration data has 0 tokens"),
        ({"calibration": {"x": np.full((3, 64), np.nan, np.float32)}}, "'x' has numbers that are not finite"),
        ({"constraints": Constraints(max_dsp=10)}, "what would fit"),
        ({"max_tokens": 60000}, "do not fit zcu102"),
    ],
)
def test_what_is_missing_or_does_not_fit_is_said(changes, said):
    assert said in refused(dataclasses.replace(OPTIONS, **changes))


def test_an_unknown_part_is_refused():
    assert "zcu104" in refused(OPTIONS, "hls:virtex2")


def test_limits_of_hardware_are_for_hls():
    with pytest.raises(UnsupportedError, match="hls:PART"):
        get_all("cpu", OPTIONS)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"score": "relu"}, "score 'relu'"),
        ({"groups": 2, "groups_kept": 1, "group_score": "sum_top2"}, "groups by the sum"),
        ({"k": 8, "selection": "all"}, "selection 'all'"),
        ({"relative_threshold": 0.5}, "thresholds and capacities of a router have no template"),
    ],
)
def test_an_unsupported_router_is_refused(change, said, model):
    (result,) = find_blocks(model)
    block = dataclasses.replace(result.numbers, routing=dataclasses.replace(result.numbers.routing, **change))
    with pytest.raises(UnsupportedError, match=said):
        quantize(block, np.ones((4, 32), np.float32), most_tokens=4)


def test_a_block_of_another_kind_needs_nothing_of_the_target(model, monkeypatch):
    other = dataclasses.replace(MOE, name="other", find=lambda *given: (MOE.find(*given)[0], ["a reason"]))
    monkeypatch.setattr(hls_target, "KINDS", (other,))
    (target,) = get_all("hls:zcu102", OPTIONS)
    (project,) = target.compile(model).projects
    assert (project.name, project.report["outside"]) == ("other_0", ["a reason"])


def test_a_block_that_is_read_wrongly_is_refused(model, monkeypatch):
    read = residuals.norm_of
    monkeypatch.setattr(residuals, "norm_of", lambda node: dataclasses.replace(read(node), epsilon=0.01))
    (target,) = get_all("hls:zcu102", OPTIONS)
    with pytest.raises(UnsupportedError, match=r"node_topk__1\.experts: .* is \S+; expected \S+ within"):
        target.compile(model)


def test_activations_in_fp8_are_refused():
    """This holds for a dense product outside of blocks too, since its weights would become integers."""
    text = """<ir_version: 11, opset_import: ["" : 24, "moec" : 1]>
    g (float[T,64] x) => (float[T,8] y) <float8e4m3fn[8,64] w, float[8,1] scale> {
      decoded = DequantizeLinear <axis = 1, block_size = 64> (w, scale)
      [product] y = moec.Linear <activation_group = 128, arithmetic = "fp8"> (x, decoded)
    }"""
    (target,) = get_all("hls:zcu102", HlsOptions())
    with pytest.raises(UnsupportedError, match="product: rounds activations to fp8; expected int"):
        target.compile(parse_model(text))


def test_a_model_without_experts_is_refused(model):
    for node in [node for node in model.graph if node.domain == "moec"]:
        node.outputs[0].replace_all_uses_with(node.inputs[0])
        model.graph.remove(node)
    (target,) = get_all("hls:zcu102", OPTIONS)
    with pytest.raises(UnsupportedError, match="no MoE block"):
        target.compile(model)


def test_a_report_of_another_version_is_said_to_be_one(artifact):
    (project,) = artifact.manifest.projects
    described = {"name": project.name, "folder": "projects/x", "report": dict(project.report)}
    assert HlsKind().tables({"projects": [described]})
    del described["report"]["estimate"]
    with pytest.raises(ArtifactError, match="has no 'estimate': another version of moec wrote it"):
        HlsKind().tables({"projects": [described]})
