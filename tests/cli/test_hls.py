"""The command line and projects for an FPGA: compiled, read, simulated, and refused by other commands."""

from __future__ import annotations

import json
import pathlib
import shutil

import pytest

from ..command import moec

DIGITS = pathlib.Path(__file__).parents[2] / "examples" / "digits"
MODEL = DIGITS / "model.onnx"
LIMITS = ("--calibrate", DIGITS / "calibration.npz", "--max-tokens", "32", "--max-dsp", "200")
"""Options with which the design is that of tests/targets/hls/test_target.py: its program is compiled once."""


def assert_refused(done, *words):
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert all(word in done.stderr for word in words), done.stderr


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    """Compile an artifact in one file."""
    path = tmp_path_factory.mktemp("hls") / "digits.zip"
    done = moec("compile", MODEL, "-o", path, "--target", "hls:zcu102", *LIMITS)
    assert done.returncode == 0, done.stderr
    assert "1 projects in" in done.stdout
    return path


def test_inspect_shows_designs_resources_and_what_integers_cost(artifact):
    done = moec("inspect", artifact)
    assert done.returncode == 0, done.stderr
    for words in (
        "that no other beats",
        "Resources on zcu102",
        "nothing here has been synthesised",
        "quantisation noise",
    ):
        assert words in done.stdout


@pytest.mark.skipif(shutil.which("g++") is None, reason="simulation needs g++")
def test_simulates(artifact):
    done = moec("simulate", artifact, "--json")
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(done.stdout)
    assert result["passed"] and result["tokens"] == 32 and result["cycles"] > 0
    assert result["pipeline_depths"] == [20, 60]


@pytest.mark.skipif(shutil.which("g++") is None, reason="simulation needs g++")
def test_channels_of_one_word_lock_up_unless_pipelines_flush(artifact):
    narrow = ("simulate", artifact, "--fifo-depth", 1)
    done = moec(*narrow)
    assert done.returncode == 1 and "FAIL: deadlock" in done.stdout
    assert moec(*narrow, "--pipeline-style", "flp", "--pipeline-depth", 8).returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [("run", "--inputs", "in.npz", "--outputs", "out.npz"), ("bench",), ("tune",), ("inspect", "--kernel", "x")],
)
def test_what_runs_here_is_no_project(artifact, arguments):
    verb, *options = arguments
    assert_refused(moec(verb, artifact, *options), "holds projects for an FPGA", "moec simulate")


def test_an_unknown_project_is_refused(artifact):
    assert_refused(moec("simulate", artifact, "--project", "other"), "no project 'other'", "moe_0")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--calibrate", "nowhere.npz"), "nowhere.npz: cannot be read"),
        (("--calibrate", DIGITS / "labels.npz"), "has 'y'; expected inputs of the model: x"),
        (("--weight-bits", "5"), "--weight-bits 5: expected 4 or 8"),
        (("--clock", "100000"), "at most 891 MHz"),
        (("--calibrated", MODEL), "model.onnx: is no calibration"),
        (("--target", "cpu"), "are for hls:PART"),
    ],
)
def test_bad_options_are_refused(tmp_path, options, said):
    assert_refused(moec("compile", MODEL, "-o", tmp_path / "art", "--target", "hls:zcu102", *LIMITS, *options), said)
    assert not (tmp_path / "art").exists()
