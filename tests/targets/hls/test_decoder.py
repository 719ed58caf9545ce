"""A trained language model from ONNX to one design of all its layers: ``examples/char_lm``."""

from __future__ import annotations

import json
import pathlib
import re
import shutil

import numpy as np
import onnx_ir as ir
import pytest

from moec.common.errors import InputError, UnsupportedError
from moec.compiling.compiler import import_model
from moec.ir import interpreter
from moec.passes import pipeline
from moec.simulators.hls.simulate import timed_calls
from moec.simulators.hls.simulator import simulate_timed
from moec.targets.hls.attention.graph import find_attention
from moec.targets.hls.options import HlsOptions
from moec.targets.hls.tables import call_table, project_tables
from moec.targets.hls.target import HlsTarget

EXAMPLE = pathlib.Path(__file__).parents[3] / "examples" / "char_lm"
IDS = np.load(EXAMPLE / "inputs.npz")["ids"]


@pytest.fixture(scope="module")
def model() -> ir.Model:
    decoder = import_model(EXAMPLE / "model.onnx")
    pipeline.run(decoder, pipeline.parse("O2"))
    return decoder


def compiled(model: ir.Model, ids=IDS, **options):
    return HlsTarget.create("hls:zcu102", HlsOptions({"ids": ids}, **options)).compile(model)


def test_ids_become_logits_in_one_design(model):
    projects = compiled(model, max_tokens=64, max_length=128)
    (project,) = projects.projects
    assert project.name == "model"
    assert [layer["kind"] for layer in project.report["estimate"]["cycles"]["layers"]] == [
        *("attention", "experts") * 2,
        *("head",) * 2,
    ]
    assert project.report["node"].startswith("the whole model")
    layout, outputs = json.loads(project.files["data/layout.json"]), project.report["model_outputs"]
    logits = interpreter.run(model, {"ids": IDS})["logits"]
    assert layout["output_scale"] * 32767 == pytest.approx(4 * np.abs(logits).max())  # headroom for other texts
    assert outputs["logits"]["same_largest"] > 0.95
    assert project.report["model_outputs"]["logits"]["decibels"] > 25
    assert (project.report["outside"], project.report["rest"]["operators"]) == ([], ())
    assert [entry["node"] for entry in project.report["layers"]] == [
        entry["node"] for entry in project.report["agreement"][:4]
    ]
    assert all(entry["decibels"] > 28 for entry in project.report["layers"])
    (unseen,) = projects.warnings
    assert re.search(r"does not show: sequences of other lengths than 97 \(\w+ and 1 more\); positions from 97", unseen)
    assert np.frombuffer(project.files["data/layers.bin"], "<i4").reshape(-1, 6, 32)[:, 0, [1, 27]].tolist() == [
        [64, 0],
        [30, 64],
        [1, 94],
        [1, 95],
        [1, 96],
    ]
    calls = [(call["tokens"], call["past"], call["logits"]) for call in project.report["calls"]]
    assert calls == [(64, 0, 1), (30, 64, 30), (1, 94, 1), (1, 95, 1), (1, 96, 1)]
    table = np.frombuffer(project.files["data/embedding.bin"], "<i2").reshape(96, 64)
    stream = np.frombuffer(project.files["data/stream.bin"], "<i2", 64 * 64)
    assert stream.tolist() == table[IDS[0, :64]].ravel().tolist()
    cycles = [call["cycles"] for call in project.report["calls"]]
    assert cycles[0] == project.report["estimate"]["cycles"]["total"]
    last = project.report["last_token"]
    assert (last["past"], last["cycles"] > cycles[-1]) == (127, True)
    assert last["memory_share"] == pytest.approx(last["gigabytes_per_second"] / 19.2)
    assert call_table([{**call, "simulated": 1} for call in project.report["calls"]]).row_count == 5
    shown = "".join(str(entry) for entry in project_tables({"name": "", "folder": "", "report": project.report}))
    assert "A call with one token behind 127 others" in shown and "not seen: sequences of other lengths" in shown


def test_a_head_of_int8_stays_outside_of_a_design_of_int4(model):
    projects = compiled(model, IDS[:2, :12], max_tokens=12, weight_bits=4)
    (project,) = projects.projects
    (reason,) = project.report["outside"]
    assert re.match("the head: .*int4", reason)
    rest, head, _ = projects.warnings
    assert "1 MatMul" in rest and head == reason
    assert "def next" not in project.files["host.py"].decode()


@pytest.mark.nightly
@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
def test_calls_take_as_long_as_estimated(model):
    (project,) = compiled(model, max_tokens=64, max_length=128).projects
    estimate = project.report["estimate"]
    timed = simulate_timed(project.files, memory_share=estimate["ports"]["share"], pipeline_depth=estimate["stages"])
    calls = timed_calls(project.report["calls"], timed, len(estimate["cycles"]["layers"]))
    assert len(calls) == 5
    for call in calls:
        assert call["cycles"] == pytest.approx(call["simulated"], rel=0.04)


@pytest.mark.nightly
def test_a_block_is_a_project_where_that_is_asked_for(model):
    projects = compiled(model, IDS[:2, :20], max_tokens=20, by_block=True).projects
    assert sorted(project.name for project in projects) == ["attention_0", "attention_1", "moe_0", "moe_1"]
    for project in projects:  # kernels of several blocks may be linked
        assert f"syn.top={project.name}\n" in project.files["hls_config.cfg"].decode()
    assert all("keys_in" not in project.files["src/model.cpp"].decode() for project in projects)


def test_calibration_sequences_are_no_longer_than_those_of_the_design(model):
    with pytest.raises(
        UnsupportedError, match="calibration sequences have 97 tokens; expected at most 64; give shorter"
    ):
        compiled(model, max_tokens=64)


def test_calibration_data_has_sequences(model):
    with pytest.raises(InputError, match=r"calibration data for 'ids' has the shape \(4, 0\); expected numbers"):
        compiled(model, IDS[:, :0], max_tokens=64)


@pytest.mark.parametrize("by_block", [False, True])
def test_calibration_data_has_ids_of_the_table(model, by_block):
    ids = IDS[:1, :4].copy()
    ids[0, 2] = 96
    with pytest.raises(InputError, match=r"cannot take the calibration data: node 'node_embedding' .*index 96"):
        compiled(model, ids, max_tokens=4, by_block=by_block)


@pytest.mark.parametrize(("batch", "tokens"), [(1, 12), (3, None), (2, 12)])
def test_attention_is_found_where_the_graph_fixes_sizes(batch, tokens):
    model = import_model(EXAMPLE / "model.onnx")
    model.graph.inputs[0].shape = ir.Shape([batch, tokens or "seq"])
    pipeline.run(model, pipeline.parse("O2"))
    blocks, refused = find_attention(model, 12)
    assert (len(blocks), refused) == (2, [])


def test_a_graph_of_fixed_sequences_turns_no_longer_ones():
    model = import_model(EXAMPLE / "model.onnx")
    model.graph.inputs[0].shape = ir.Shape([1, 9])
    pipeline.run(model, pipeline.parse("O2"))
    with pytest.raises(UnsupportedError, match=r"has 9 positions; .* give a --max-length of 9 at most"):
        compiled(model, IDS[:1, :9], max_length=14)
