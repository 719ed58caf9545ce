"""A trained language model from ONNX to one design of all its layers: ``examples/char_lm``."""

from __future__ import annotations

import pathlib

import numpy as np
import onnx_ir as ir
import pytest

from moec.compiler import import_model
from moec.errors import InputError, UnsupportedError
from moec.passes.framework import pipeline
from moec.targets.hls.options import HlsOptions
from moec.targets.hls.target import HlsTarget

EXAMPLE = pathlib.Path(__file__).parents[3] / "examples" / "char_lm"
IDS = np.load(EXAMPLE / "inputs.npz")["ids"]


@pytest.fixture(scope="module")
def model() -> ir.Model:
    found = import_model(EXAMPLE / "model.onnx")
    pipeline.run(found, pipeline.parse("O2"))
    return found


def compiled(model: ir.Model, ids=IDS, **options):
    return HlsTarget.create("hls:zcu102", HlsOptions({"ids": ids}, **options)).compile(model)


def test_all_layers_are_one_design_and_the_rest_is_said(model):
    projects = compiled(model, max_tokens=64, max_length=128)
    (project,) = projects.projects
    assert project.name == "model"
    assert [layer["kind"] for layer in project.report["estimate"]["cycles"]["layers"]] == ["attention", "experts"] * 2
    assert project.report["model_outputs"]["logits"]["decibels"] > 25
    rest, unseen = projects.warnings
    assert "6.5% of the operations are in no project: 1 MatMul" in rest
    assert (
        "does not show: sequences of other lengths than 97 (node_Attention_16 and 1 more); positions from 97" in unseen
    )
    assert np.frombuffer(project.files["data/layers.bin"], "<i4").reshape(-1, 4, 32)[:, 0, [1, 27]].tolist() == [
        [64, 0],
        [30, 64],
        [1, 94],
        [1, 95],
        [1, 96],
    ]


def test_a_block_is_a_project_where_that_is_asked_for(model):
    projects = compiled(model, IDS[:2, :20], max_tokens=20, by_block=True).projects
    assert sorted(project.name for project in projects) == ["attention_0", "attention_1", "moe_0", "moe_1"]
    assert all("keys_in" not in project.files.get("src/attention_block.cpp", b"").decode() for project in projects)


def test_calibration_sequences_are_no_longer_than_those_of_the_design(model):
    with pytest.raises(UnsupportedError, match="calibration sequences of 97 tokens, and room for 64; give shorter"):
        compiled(model, max_tokens=64)


def test_calibration_data_has_sequences(model):
    with pytest.raises(InputError, match=r"calibration data for 'ids' has the shape \(4, 0\); expected numbers"):
        compiled(model, IDS[:, :0], max_tokens=64)
