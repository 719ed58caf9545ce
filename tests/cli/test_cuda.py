"""The command line and a program for a GPU: compiled, run, verified and read without one."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import pytest

from ..command import moec

TEXT = '<ir_version: 10, opset_import: ["" : 21]> g (float[n,4] x) => (float[n,4] y) { a = Exp (x) y = Softmax (a) }'

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="emulation needs g++")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Make a model, inputs, and the model compiled for a GPU."""
    folder = tmp_path_factory.mktemp("cuda")
    onnx.save(onnx.parser.parse_model(TEXT), folder / "model.onnx")
    np.savez(folder / "inputs.npz", x=np.arange(8, dtype=np.float32).reshape(2, 4) / 8)
    done = moec("compile", folder / "model.onnx", "-o", folder / "art", "--target", "cuda")
    assert done.returncode == 0, done.stderr
    return folder


def test_runs_emulated(folder):
    done = moec("run", folder / "art", "--inputs", folder / "inputs.npz", "--outputs", folder / "out.npz", "--emulate")
    assert done.returncode == 0, done.stderr
    x = np.load(folder / "inputs.npz")["x"].astype(np.float64)
    exponentials = np.exp(np.exp(x))
    expected = exponentials / exponentials.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(np.load(folder / "out.npz")["y"], expected, rtol=1e-5)


def test_verifies_emulated(folder):
    done = moec("verify", folder / "model.onnx", folder / "art", "--emulate")
    assert done.returncode == 0, done.stderr
    assert "match" in done.stdout


def test_evaluates_emulated_beside_a_model_for_the_processor(folder):
    evaluate = (
        "evaluate",
        folder / "model.onnx",
        folder / "art",
        "--data",
        folder / "inputs.npz",
        "--metric",
        "cosine",
    )
    done = moec(*evaluate, "--emulate", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["models"][1]["qualities"]["cosine"]["value"] == pytest.approx(1, abs=1e-5)


def test_shows_the_text_of_a_kernel(folder):
    done = moec("inspect", folder / "art", "--kernel", "exp", "--emit", "cuda")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("// exp")
    assert "__global__" in done.stdout


def test_writes_a_program_of_one_kernel(folder, tmp_path):
    done = moec("inspect", folder / "art", "--kernel", "exp", "--emit", "standalone", "-o", tmp_path / "made")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["exp.cu", "exp.numbers"]
    assert "exp_kernel<<<" in (tmp_path / "made" / "exp.cu").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--kernel", "exp", "--emit", "standalone"), "add --kernel K and -o DIR"),
        (("--emit", "standalone", "-o", "made"), "add --kernel K and -o DIR"),
        (("--kernel", "exp", "--emit", "cuda", "-o", "made"), "-o needs --emit standalone"),
        (("--gpu", "h100"), "--gpu and --tokens need --launches or --ranks"),
        (("--launches", "--kernel", "exp"), "give one of --expert, --kernel, --launches and --ranks"),
        (("--launches", "--architecture", "sm_80"), "--architecture does not go with --launches"),
        (("--launches", "--gpu", "gtx"), "GPU 'gtx' is unknown; expected one of a100, h100, b200, rtx4090"),
        (("--launches", "--tokens", "1,x"), "tokens is '1,x'; expected numbers of tokens from 1 to"),
        (("--launches", "--tokens", "0"), "tokens is '0'; expected numbers of tokens from 1 to"),
        (("--architecture", "sm_90a"), "has no program for architecture 'sm_90a'; its programs are for sm_80"),
    ],
)
def test_options_that_do_not_fit_are_refused(folder, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    done = moec("inspect", folder / "art", *arguments)
    assert done.returncode == 2 and message in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_form_of_another_target_is_refused(folder):
    done = moec("inspect", folder / "art", "--kernel", "exp", "--emit", "asm")
    assert done.returncode == 2
    assert "is not available as 'asm'; available: tir, cuda" in done.stderr


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there may be a GPU")
def test_without_a_gpu_the_way_out_is_named(folder):
    done = moec("run", folder / "art", "--inputs", folder / "inputs.npz", "--outputs", folder / "none.npz")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "--emulate" in done.stderr
    assert not (folder / "none.npz").exists()
