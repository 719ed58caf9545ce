"""A new kind of target, known only to its own module: its options, command and form of sources reach the command
line."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

from moec import targets
from moec.common.errors import UnsupportedError
from moec.targets.kind import ProgramKind

KIND = '''
from typing import Annotated, ClassVar

import typer

from moec.common.errors import UnsupportedError
from moec.targets.kind import CommandResult, Form, Kind


class ToyOptions:
    kind: ClassVar[str] = "toy"
    subject: ClassVar[str] = "sizes are for toy:NAME"

    def __init__(self, size):
        self.size = size


def read_options(toy_size: Annotated[int | None, typer.Option(min=1, help="Of the toy.")] = None) -> ToyOptions | None:
    return None if toy_size is None else ToyOptions(toy_size)


def play(times: Annotated[int, typer.Option(help="How often.")] = 1, *, progress) -> CommandResult:
    """Play with it."""
    progress("playing")
    return CommandResult({"times": times}, ["played"], times < 3)


class ToyKind(Kind):
    name = "toy"
    examples = ("toy:car",)
    forms = (Form("wood", ".wood", "#"),)

    def target(self, name, options=None):
        raise UnsupportedError(f"{name} of size {options and options.size}")

    def read_options(self):
        return read_options

    def commands(self):
        return [play]
'''


ROOT = pathlib.Path(__file__).parents[2]
MODEL = ROOT / "examples" / "digits" / "model.onnx"
PROGRAM = """
import json, sys
from moec import targets
targets.KINDS["toy"] = "toy_kind:ToyKind"
from tests.command import moec
done = [moec(*command) for command in json.load(sys.stdin)]
print(json.dumps([[one.returncode, one.stdout, one.stderr] for one in done]))
"""
REFUSED = {
    ("--target", "toy:car", "--toy-size", "3"): "toy:car of size 3",
    ("--target", "toy:car"): "toy:car of size None",
    ("--target", "cpu", "--toy-size", "3"): "target 'cpu': sizes are for toy:NAME",
    ("--target", "toy:car", "--max-tokens", "3"): "target 'toy:car': calibration data and limits of hardware are",
    ("--target", "toys"): f"use one of {', '.join(targets.KINDS)}, toy, with a variant such as cpu:avx2, cuda:sm_80+",
    ("--target", "toy:car+bus"): "only cuda takes several architectures; choose one, toy:car",
}


@pytest.fixture
def moec(tmp_path):
    """Run commands where the kind is known, in one process; exit code, output and messages of each."""
    (tmp_path / "toy_kind.py").write_text(KIND)

    def run(*commands: tuple[str, ...]) -> list[tuple[int, str, str]]:
        paths = {**os.environ, "PYTHONPATH": str(tmp_path)}
        command, given = [sys.executable, "-c", PROGRAM], json.dumps(commands)
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=paths, input=given)
        return [tuple(load) for load in json.loads(done.stdout)]

    return run


def test_options_go_to_their_kind_alone(moec, tmp_path):
    start = ("compile", str(MODEL), "-o", str(tmp_path / "made"))
    for (code, _, said), reason in zip(moec(*((*start, *one) for one in REFUSED)), REFUSED.values(), strict=True):
        assert code == 2 and reason in said


def test_its_command_ends_as_it_says(moec):
    (_, played, _), (code, listed, _) = moec(("play",), ("play", "--times", "3", "--json"))
    assert played == "played\n"
    assert code == 1 and '"times": 3' in listed


def test_its_form_is_one_to_ask_for(moec):
    ((_, _, said),) = moec(("inspect", "nothing", "--kernel", "k", "--emit", "clay"))
    assert "wood" in said


class OtherGpus(ProgramKind):
    """GPUs of another vendor, of one architecture."""

    name, examples, has_device = "other", ("other:gfx1",), True
    measure_roofline = tune = None

    def target(self, name, options=None):
        if name != "other:gfx1":
            raise UnsupportedError(name)


@pytest.mark.parametrize(
    ("architecture", "name"), [("gfx1", "other:gfx1"), ("sm_90a", "cuda:sm_90a"), ("none", "cuda:none"), (None, "cuda")]
)
def test_an_architecture_belongs_to_the_kind_that_has_it(architecture, name, monkeypatch):
    every = (*targets.kinds(), OtherGpus())
    monkeypatch.setattr(targets, "kinds", lambda: every)
    assert targets.default(on_device=True, architecture=architecture) == name
