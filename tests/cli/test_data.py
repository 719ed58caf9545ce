"""Commands that take data: what moec evaluate prints, and what it refuses."""

from __future__ import annotations

import json
import re

import numpy as np
import onnx
import pytest

from .test_cli import assert_refused, mlp, moec


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """model.onnx, model.moec and other.moec (the same with other weights), in.npz with labels."""
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
