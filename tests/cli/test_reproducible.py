"""Two compilations of one model give the same bytes, in any place and environment."""

from __future__ import annotations

import os
import pathlib
import subprocess

import numpy as np
import onnx_ir
import pytest

import moec as library

from ..command import START, moec
from ..raising.blocks import Layer, model_of

QUANTISED = "O2,quantize-experts{format=int4}"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("reproducible") / "model.onnx"
    onnx_ir.save(model_of(Layer(sequences=True)), path)
    return path


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check(model: pathlib.Path, tmp_path: pathlib.Path, *options: str, cache: str = "off") -> None:
    """Compile here, and in another process with other hashes, another number of threads in libraries, another folder
    and, unless ``cache`` is on, no code from the kernel cache."""
    done = moec("compile", model, "-o", tmp_path / "a.moec", *options)
    assert done.returncode == 0, done.stderr
    (tmp_path / "elsewhere").mkdir()
    changed = {"PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "2", "MOEC_KERNEL_CACHE": cache}
    command = [*START, "compile", str(model), "-o", "b.moec", *options]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path / "elsewhere", env={**os.environ, **changed})
    first, second = contents(tmp_path / "a.moec"), contents(tmp_path / "elsewhere" / "b.moec")
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []
    assert len(first) > 10


def test_two_compilations_are_the_same_bytes(model, tmp_path):
    check(model, tmp_path, "-O1", cache="on")


@pytest.mark.nightly
@pytest.mark.parametrize(
    "options",
    [("-O2",), ("--passes", QUANTISED), ("--target", "cuda:sm_80+sm_90a"), ("--target", "hls:kv260")],
    ids=lambda options: options[-1],
)
def test_two_compilations_of_every_kind_are_the_same_bytes(model, tmp_path, options):
    if options[-1].startswith("hls"):
        rng = np.random.default_rng(0)
        np.savez(tmp_path / "samples.npz", x=rng.standard_normal((2, 5, 6), np.float32))
        options = (*options, "--calibrate", str(tmp_path / "samples.npz"), "--max-tokens", "16")
    check(model, tmp_path, *options)


def test_other_options_are_other_bytes_and_times_go_to_stderr_when_asked_for(model, tmp_path):
    quiet = moec("compile", model, "-o", tmp_path / "a.moec", "-O1")
    said = moec("compile", model, "-o", tmp_path / "b.moec", "-O1", "--threads", 1, "-v")
    assert contents(tmp_path / "a.moec") != contents(tmp_path / "b.moec")
    steps = [line.split(": ")[1] for line in said.stderr.splitlines() if line.startswith("time: ")]
    assert steps[0] == "importing" and "raise-moe" in steps and steps[-1] == "writing the artifact"
    assert "time: " not in quiet.stderr


def test_copies_into_a_zip_are_the_same_bytes(model, tmp_path):
    compiled = library.compile(model, output=tmp_path / "a.moec", passes="O1")
    compiled.save(tmp_path / "first.zip")
    for path in (tmp_path / "a.moec").rglob("*"):
        os.utime(path, (10**9, 10**9))
    library.load(tmp_path / "a.moec").save(tmp_path / "second.zip")
    assert (tmp_path / "first.zip").read_bytes() == (tmp_path / "second.zip").read_bytes()
    os.utime(tmp_path / "first.zip")
    assert library.load(tmp_path / "first.zip").digest == compiled.digest
