"""Commands that take data: the output of moec evaluate and moec sweep, and their refusals."""

from __future__ import annotations

import json
import re

import numpy as np
import onnx
import pytest
from onnx import helper

from ..command import moec
from .test_cli import assert_refused, mlp


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Make model.onnx, model.moec and other.moec (the same with other weights), and in.npz with labels."""
    folder = tmp_path_factory.mktemp("data")
    for name, seed in (("model", 0), ("other", 1)):
        onnx.save(mlp(seed), folder / f"{name}.onnx")
        done = moec("compile", folder / f"{name}.onnx", "-o", folder / f"{name}.moec", "-O1", "--threads", 1)
        assert done.returncode == 0, done.stderr
    np.savez(folder / "in.npz", ids=np.arange(11) % 9, labels=np.arange(11) % 4)
    return folder


def evaluated(folder, *arguments):
    return moec("evaluate", *arguments, "--data", folder / "in.npz")


def test_models_stand_side_by_side(folder):
    done = evaluated(folder, folder / "model.moec", folder / "other.moec", "--metric", "top1", "--metric", "kl")
    assert (done.returncode, done.stderr) == (0, "")
    first, second = (line.split() for line in done.stdout.splitlines() if ".moec" in line)
    assert first[0].endswith("model.moec") and second[0].endswith("other.moec")
    assert len(first) == 5 and first[4] == "0.0000"
    assert re.search(r"11 rows, 11 predictions\n.*95% confidence", done.stdout)
    assert "±" in done.stdout


def test_json_and_an_onnx_file_that_is_compiled_first(folder):
    done = evaluated(folder, folder / "model.onnx", folder / "model.moec", "--metric", "loss", "--json")
    assert done.returncode == 0, done.stderr
    first, second = json.loads(done.stdout)["models"]
    assert second["name"].endswith("model.moec")
    assert second["qualities"]["loss"]["value"] == pytest.approx(first["qualities"]["loss"]["value"], rel=1e-5)
    assert first["qualities"]["loss"]["difference"] is None


def test_nan_is_noted(folder, tmp_path):
    broken = mlp()
    table = onnx.numpy_helper.to_array(broken.graph.initializer[0]).copy()
    table[3] = np.nan
    broken.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(table, "table"))
    onnx.save(broken, tmp_path / "broken.onnx")
    done = evaluated(folder, tmp_path / "broken.onnx", "--metric", "loss", "--json")
    assert done.returncode == 0
    assert "broken.onnx: 4 elements of y are NaN, in 1 of 11 rows" in done.stderr
    assert json.loads(done.stdout)["models"][0]["qualities"]["loss"]["value"] == "nan"


def test_what_does_not_fit_is_one_line(folder, tmp_path):
    art = folder / "model.moec"
    assert_refused(evaluated(folder, art, "--metric", "bleu"), "no metric 'bleu'; expected loss")
    assert_refused(evaluated(folder, art, "--metric", "kl"), "give at least two")
    assert_refused(evaluated(folder, tmp_path / "none.moec"), "none.moec: no such file")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    assert_refused(moec("evaluate", art, "--data", tmp_path / "other.npz"), "other.npz: has no array 'ids'")
    np.savez(tmp_path / "labels.npz", labels=np.zeros(3, np.int64))
    refused = evaluated(folder, art, "--labels", tmp_path / "labels.npz")
    assert_refused(refused, "labels.npz", "labels are [3]; expected [11]")


@pytest.fixture(scope="module")
def layer(tmp_path_factory):
    """Write a model: x [n,64] → an MoE layer of 4 relu experts; layer.onnx and x.npz."""
    generator = np.random.default_rng(0)
    shapes = {"router": (64, 4), "up": (4, 64, 64), "down": (4, 64, 64)}
    arrays = {name: generator.normal(size=shape).astype(np.float32) / 8 for name, shape in shapes.items()}
    nodes = [
        helper.make_node("MatMul", ["x", "router"], ["logits"]),
        helper.make_node(
            "MoE", ["x", "logits", "up", "", "down"], ["y"], domain="com.microsoft", activation_type="relu", k=2
        ),
    ]
    sides = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 64]) for name in "xy"]
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "layer", sides[:1], sides[1:], tensors)
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    folder = tmp_path_factory.mktemp("layer")
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=10), folder / "layer.onnx")
    np.savez(folder / "x.npz", x=generator.normal(size=(12, 64)).astype(np.float32))
    return folder


def swept(layer, output, *arguments):
    return moec("sweep", layer / "layer.onnx", "--data", layer / "x.npz", "-o", output, "--threads", 1, *arguments)


def test_a_sweep_marks_its_front_and_is_not_run_twice(layer, tmp_path):
    done = swept(layer, tmp_path, "--formats", "int2", "--keep")
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^  [12] +(\S+) ", done.stdout, re.MULTILINE)
    assert rows == ["O2", "quantize-experts{format=int2}"]
    assert "Pareto front of kl" in done.stdout
    assert len(list(tmp_path.glob("*.moec"))) == 2
    assert "<title>Sweep</title>" in (tmp_path / "sweep.html").read_text(encoding="utf-8")
    again = swept(layer, tmp_path, "--formats", "int2", "--keep", "--json")
    assert again.returncode == 0, again.stderr
    variants = json.loads(again.stdout)
    assert [variant["expert_bits"] for variant in variants] == [32, 2]
    assert all("weights, bytes" in variant["fronts"] for variant in variants)
    assert len(list(tmp_path.glob("*.moec"))) == 2


def test_sweeps_that_cannot_be_are_one_line(layer, tmp_path):
    assert_refused(swept(layer, tmp_path, "--avg", "3"), "avg=3 needs a profile")
    assert_refused(swept(layer, tmp_path, "--passes", "O2,nothing"), "unknown pass 'nothing'")
    assert_refused(swept(layer, tmp_path / "a" / "b", "--formats", "int4"), "cannot be made")
    done = swept(layer, tmp_path, "--passes", "O2,quantize-experts{format=int4,experts=9}")
    assert done.returncode == 2
    assert "note: quantize-experts{format=int4,experts=9}: " in done.stderr
    assert "1 of 2 variants failed" in done.stderr
