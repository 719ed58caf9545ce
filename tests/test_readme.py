"""Commands and Python of README.md, run as a reader would on small models."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from .exporting.test_genai import speaking

ROOT = pathlib.Path(__file__).parent.parent
PREPARED = """import numpy as np
import torch
ids = np.array([[3, 17, 0, 22, 5, 11]])
module = torch.nn.Linear(4, 4)
"""


def block_of(language: str, with_text: str) -> str:
    """The one block in a language that has the text."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    (block,) = (block for block in found if with_text in block)
    return block


def run(folder: pathlib.Path, *command: str) -> str:
    """Run a command in the folder, where ``moec`` and ``python`` are those of this environment."""
    path = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.nightly
def test_the_first_commands_end_with_a_page(tmp_path):
    shutil.copytree(ROOT / "examples/char_lm", tmp_path / "examples/char_lm")
    installing, _, commands = block_of("bash", "moec verify").partition("&& \\\n")
    assert installing.endswith("pip install -q . ")
    printed = run(tmp_path, "bash", "-c", commands.replace(".venv/bin/moec", "moec"))
    assert "char_lm.moec: 2 MoE blocks" in printed and "match" in printed
    assert {path.name for path in tmp_path.iterdir()} == {"examples", "char_lm.moec", "outputs.npz", "report.html"}


@pytest.mark.nightly
def test_commands_for_other_programs_write_their_files(tmp_path):
    shutil.copy(ROOT / "examples/char_lm/model.onnx", tmp_path)
    run(tmp_path, "bash", "-ec", block_of("bash", "--for onnxruntime"))
    assert (tmp_path / "fast/model.onnx").exists() and (tmp_path / "model/libmodel.so").exists()


@pytest.mark.nightly
def test_python_runs_as_it_stands(tmp_path):
    pytest.importorskip("torch")
    speaking("mixtral", tmp_path / "model.gguf")
    example = block_of("python", "moec.compile").replace('"model.onnx"', '"model.gguf"')
    printed = run(tmp_path, sys.executable, "-c", PREPARED + example)
    assert len(printed) > 1
    assert (tmp_path / "model.moec").is_dir()
