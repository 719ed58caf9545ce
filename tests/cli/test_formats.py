"""Formats of weights on the command line: --experts and --linears in compile, inspect and verify."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from ..command import moec
from .test_cli import assert_refused

E, D, F = 4, 256, 128


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Make a model: x [n,D] → a dense product → an MoE layer of relu experts."""
    generator = np.random.default_rng(0)
    shapes = {"dense": (D, D), "router": (D, E), "up": (E, F, D), "down": (E, D, F)}
    arrays = {name: generator.normal(size=shape).astype(np.float32) / 16 for name, shape in shapes.items()}
    attributes = {"activation_type": "relu", "k": 2, "normalize_routing_weights": 1}
    nodes = [
        helper.make_node("MatMul", ["x", "dense"], ["h"]),
        helper.make_node("MatMul", ["h", "router"], ["logits"]),
        helper.make_node("MoE", ["h", "logits", "up", "", "down"], ["y"], domain="com.microsoft", **attributes),
    ]
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", D])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", D])],
        [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    path = tmp_path_factory.mktemp("formats") / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=10), path)
    return path


def test_experts_in_fewer_bits(model, tmp_path):
    art = tmp_path / "model.moec"
    done = moec("compile", model, "-o", art, "--experts", "int4/32")
    assert done.returncode == 0, done.stderr
    assert "Rounded weights" in done.stdout and "up int4/32, down int4/32" in done.stdout
    (loss,) = json.loads(moec("inspect", art, "--json").stdout)["artifacts"][0]["losses"]
    assert loss["formats"] == {"up": ["int4/32"], "down": ["int4/32"]} and loss["arithmetic"] == "int8"
    assert 0.05 < loss["weight_error"] < loss["output_error"] < 0.3
    assert "Rounded weights" in moec("inspect", art).stdout
    compared = moec("verify", model, art, "--json")
    assert compared.returncode == 0, compared.stdout
    data = json.loads(compared.stdout)
    assert data["rounded"] and data["spread"] and data["tolerance"] == 1e-4
    assert all(0.01 < difference["norm"] < 0.4 for case in data["cases"] for difference in case["differences"])
    assert "Compared with the rounded model" in moec("verify", model, art).stdout


@pytest.mark.nightly
def test_dense_products_in_fewer_bits(model, tmp_path):
    art = tmp_path / "model.moec"
    assert moec("compile", model, "-o", art, "--experts", "bf16", "--linears", "int8").returncode == 0
    losses = json.loads(moec("inspect", art, "--json").stdout)["artifacts"][0]["losses"]
    expected = [{"up": ["bfloat16"], "down": ["bfloat16"]}, {"weight": ["int8"]}]
    assert [loss["formats"] for loss in losses] == expected, "the router keeps its floats"
    assert moec("verify", model, art).returncode == 0


def test_verify_sees_that_an_artifact_is_of_other_weights(model, tmp_path):
    other = onnx.load(model)
    (up,) = (initializer for initializer in other.graph.initializer if initializer.name == "up")
    up.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(up) * 1.1, "up"))
    path, artifact = tmp_path / "other.onnx", tmp_path / "other.moec"
    onnx.save(other, path)
    assert moec("compile", path, "-o", artifact, "--experts", "int4/32").returncode == 0
    assert moec("verify", model, artifact).returncode == 1


def test_pipeline_shows_the_passes_behind_formats():
    text = moec("pipeline", "-O1", "--experts", "bf16", "--linears", "int8/64").stdout.strip()
    assert text.endswith("cast-weights{dtype=bf16},quantize-linears{format=int8,group=64}")


def test_formats_that_do_not_exist(model, tmp_path):
    art = tmp_path / "model.moec"
    assert_refused(moec("compile", model, "-o", art, "--experts", "int7"), "experts: no format 'int7'", "mxfp4")
    assert_refused(moec("compile", model, "-o", art, "--linears", "mxfp4/64"), "mxfp4 has groups of 32", "group=64")


def test_fp8_activations_are_asked_for_beside_weights(model, tmp_path):
    text = moec("pipeline", "-O1", "--experts", "fp8/128", "--arithmetic", "fp8").stdout.strip()
    assert text.endswith("quantize-experts{format=fp8,group=128},round-activations{format=fp8}")
    path = tmp_path / "fp8.moec"
    moec("compile", model, "-o", path, "--experts", "fp8/128", "--linears", "fp8/128", "--arithmetic", "fp8")
    losses = json.loads(moec("inspect", path, "--json").stdout)["artifacts"][0]["losses"]
    rounded = [loss for loss in losses if loss["pass_name"] == "round-activations"]
    assert [loss["arithmetic"] for loss in rounded] == ["fp8", "fp8"]
    assert moec("verify", model, path).returncode == 0


def test_an_arithmetic_that_nobody_asks_for_is_refused(model, tmp_path):
    assert_refused(moec("compile", model, "-o", tmp_path / "x", "--arithmetic", "int8"), "expected fp8")
