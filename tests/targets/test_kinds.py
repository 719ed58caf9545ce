"""A new kind of target, known only to its own module: its options, command and form of sources reach the command
line."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

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
MODEL = pathlib.Path(__file__).parents[2] / "examples" / "digits" / "model.onnx"


@pytest.fixture
def moec(tmp_path):
    (tmp_path / "toy_kind.py").write_text(KIND)
    register = 'from moec import targets; targets.KINDS["toy"] = "toy_kind:ToyKind"'
    start = f"{register}; from moec.cli.main import main; main()"

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", start, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    return run


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--target", "toy:car", "--toy-size", "3"), "toy:car of size 3"),
        (("--target", "toy:car"), "toy:car of size None"),
        (("--target", "cpu", "--toy-size", "3"), "target 'cpu': sizes are for toy:NAME"),
        (("--target", "toy:car", "--max-tokens", "3"), "target 'toy:car': calibration data and limits of hardware are"),
        (("--target", "toys"), "use one of cpu, cuda, hls, toy, with a variant such as cpu:avx2, cuda:sm_80+sm_90a, "),
        (("--target", "toy:car+bus"), "only cuda takes several architectures; choose one, toy:car"),
    ],
)
def test_options_go_to_their_kind_alone(moec, options, said):
    done = moec("compile", MODEL, "-o", "made", *options)
    assert done.returncode == 2 and said in done.stderr, done


def test_its_command_ends_as_it_says(moec):
    assert moec("play").stdout == "played\n"
    done = moec("play", "--times", 3, "--json")
    assert done.returncode == 1 and '"times": 3' in done.stdout, done


def test_its_form_is_one_to_ask_for(moec):
    assert "wood" in moec("inspect", "nothing", "--kernel", "k", "--emit", "clay").stderr
