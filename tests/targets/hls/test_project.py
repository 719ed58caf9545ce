"""Projects without moec: their simulation from any folder, and their host script."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from moec.ir.dialect import ExpertsSpec, RouteSpec

from ...readable import unreadable_parts
from .layers import float_block, project, quantized, tokens_for

SMALL = {"lanes_in": 8, "lanes_out": 8, "hidden_tile": 16}


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    block = float_block(RouteSpec(2), ExpertsSpec("gelu", "none"))
    integers = quantized(block, most_tokens=5)
    return project(integers, integers.quantized(tokens_for(block, 5)), **SMALL)


@pytest.mark.nightly
@pytest.mark.skipif(shutil.which("make") is None or shutil.which("g++") is None, reason="make or g++ is not installed")
@pytest.mark.skipif(importlib.util.find_spec("hls4ml") is None, reason="hls4ml is not installed")
def test_the_testbench_finds_its_data_from_any_folder(files, tmp_path):
    for name, content in files.items():
        (tmp_path / "project" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "project" / name).write_bytes(content)
    environment = {**os.environ, "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"}
    make = ["make", "-C", str(tmp_path / "project"), "csim", "CXXFLAGS=-O0"]
    done = subprocess.run(make, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "PASS: 5 tokens" in done.stdout, done.stderr
    program, elsewhere = tmp_path / "project" / "work" / "csim", tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert "PASS" in subprocess.run([program], cwd=elsewhere, capture_output=True, text=True, check=True).stdout
    assert "argv" not in files["hls_config.cfg"].decode()  # the tools choose the folder
    layers = tmp_path / "project" / "data" / "layers.bin"
    record = np.fromfile(layers, "<i4")
    record[1] = 6
    record.tofile(layers)
    refused = subprocess.run([program], cwd=elsewhere, capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stderr) == (2, "6 tokens; the design holds up to 5\n")


def test_the_host_counts_tokens_for_the_hardware_does_not(files):
    host: dict[str, Any] = {}
    exec(files["host.py"], host)
    assert len(host["tokens_in"](np.zeros((5, 40), np.float32))) % 64 == 0
    for shape in ((6, 40), (5, 39), (40,)):
        with pytest.raises(ValueError, match="expected up to 5 of 40"):
            host["tokens_in"](np.zeros(shape, np.float32))


def test_the_least_version_and_the_clock_are_said(files):
    for name in ("README.md", "hls_config.cfg", "run_hls.tcl"):
        assert "2021.2" in files[name].decode(), name
    assert "clock_uncertainty=12%" in files["hls_config.cfg"].decode()
    assert "tool's\ndefault of 27%" in files["README.md"].decode()


def test_lines_of_cpp_are_short(files):
    sources = {path: text.decode() for path, text in files.items() if path.endswith((".cpp", ".h"))}
    assert len(sources) > 20
    for path, text in sources.items():
        assert not unreadable_parts(text), path
